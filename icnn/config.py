"""Settings of a run: TOML files, ``--set KEY=VALUE``, and what is saved with the weights.

A setting has one dotted name, for example ``train.lr``. Any of ``train.*`` and
``augment.*`` may be given for one network alone by putting its name in front:
``eye.train.lr``. Unknown names are refused with the nearest known one.
"""

import difflib
import tomllib
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from icnn.errors import InputError
from icnn.stages import NETWORKS


@dataclass(frozen=True)
class Network:
    """Which of `icnn.model.network.PRESETS` is built."""

    preset: str = "paper"


@dataclass(frozen=True)
class Train:
    """One network's training (Sec. 2.5 and 4.2)."""

    batch: int = 10
    shards: int = 1  # parts whose gradients are summed; MPI processes take at least one each
    steps: int = 4000
    lr: float = 0.05
    schedule: str = "cosine"  # or "constant"; cosine falls to 0 at the last step
    warmup: float = 0.05  # share of the steps
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-5
    shrink: float = 1.0  # every parameter times this at each step
    validate_every: int = 200  # steps
    patience: int = 0  # validations without a better F after which to stop; 0: never
    stop_after_rises: int = 0  # rises of the validation loss in a row after which to stop; 0: never
    ema: float = 0.0  # EMA decay per step; the averaged weights are validated and saved (0 disables)
    part_weight: float = 1.0  # of a part's pixels in the loss, beside 1 for background
    keep: str = "best"  # weights of the best validation F, or "last"
    label_rule: str = "argmax"  # or "threshold": the arg-max part if its map exceeds 50 of 255, else background
    centre: str = "median"  # patches around the per-axis median of a part's true pixels, or "box"


@dataclass(frozen=True)
class Augment:
    """Random transforms, drawn anew each time an image enters the network (Sec. 4.2)."""

    rotation: float = 15.0  # degrees, either way
    scale: tuple[float, float] = (0.9, 1.1)
    shift: float = 10.0  # network pixels, either way, each axis
    stretch: float = 0.0  # of the height against the width, relative, either way
    shear: float = 0.0  # pixels along a row for each row, either way
    mirror: float = 0.0  # share of the inputs that are mirrored; left and right swap in stage 1
    draw: str = "input"  # or "batch": one draw for all images of a mini-batch
    # What follows changes colours; see `icnn.data.photometric`.
    gamma: float = 0.0  # logarithm of the tone curve's exponent, either way
    saturation: tuple[float, float] = (1.0, 1.0)
    grey: float = 0.0  # share of the inputs without colours
    light: float = 0.0  # relative change of brightness from the middle to the border, either way, each axis
    blur: float = 0.0  # pixels, the largest standard deviation; half of the inputs stay sharp
    noise: float = 0.0  # grey levels, the largest standard deviation
    jpeg: float = 0.0  # share of the inputs that go through a JPEG
    quality: tuple[float, float] = (20.0, 90.0)  # of that JPEG
    occlusion: float = 0.0  # share of the inputs with something in front of the face


@dataclass(frozen=True)
class Modulation:
    """How beta and beta0 are fitted: "lbfgsb", "neldermead" or "none"."""

    method: str = "lbfgsb"


@dataclass(frozen=True)
class Evaluate:
    """Evaluation split, batch size and inference options."""

    split: str = "tuning"
    batch: int = 32
    recentre: float = 0.0  # pixels from a patch's middle beyond which a part's patch is cut once more; 0: never


@dataclass(frozen=True)
class Card:
    """What weights say of themselves besides settings and scores."""

    data: str = ""  # what they were computed from
    terms: str = ""  # what may be done with them


@dataclass(frozen=True)
class Synthetic:
    """The embedded data set, used without --data."""

    exemplars: int = 400
    tuning: int = 50
    testing: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Config:
    """All settings of a run. `only` holds those of single networks: name -> section -> key -> value."""

    seed: int = 0
    threads: int = 0  # 0: all cores
    data: str = ""  # a folder in the layout of Smith et al.; "": synthetic faces
    network: Network = field(default_factory=Network)
    train: Train = field(default_factory=Train)
    augment: Augment = field(default_factory=Augment)
    modulation: Modulation = field(default_factory=Modulation)
    evaluate: Evaluate = field(default_factory=Evaluate)
    synthetic: Synthetic = field(default_factory=Synthetic)
    card: Card = field(default_factory=Card)
    only: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def for_network(self, name: str) -> tuple[Train, Augment]:
        """The training and augmentation settings of one network."""
        only = self.only.get(name, {})
        return replace(self.train, **only.get("train", {})), replace(self.augment, **only.get("augment", {}))


_PER_NETWORK = ("train", "augment")

_CHOICES = {
    "network.preset": ("paper", "released", "separate"),
    "train.schedule": ("cosine", "constant"),
    "train.keep": ("best", "last"),
    "train.label_rule": ("argmax", "threshold"),
    "train.centre": ("median", "box"),
    "augment.draw": ("input", "batch"),
    "modulation.method": ("lbfgsb", "neldermead", "none"),
    "evaluate.split": ("exemplars", "tuning", "testing"),
}

#: key -> least and greatest value allowed.
_RANGES = {
    "seed": (0, 2**63 - 1),
    "threads": (0, 4096),
    "train.batch": (1, 4096),
    "train.steps": (1, 10**9),
    "train.lr": (0, 1e38),
    "train.shards": (1, 4096),
    "train.warmup": (0, 1),
    "train.momentum": (0, 0.999999),
    "train.weight_decay": (0, 1e6),
    "train.shrink": (0, 1),
    "train.ema": (0, 0.999999),
    "train.part_weight": (1e-3, 1e3),
    "train.validate_every": (1, 10**9),
    "train.patience": (0, 10**9),
    "train.stop_after_rises": (0, 10**9),
    "augment.rotation": (0, 180),
    "augment.scale": (0.1, 10),
    "augment.shift": (0, 64),
    "augment.stretch": (0, 0.9),
    "augment.shear": (0, 1),
    "augment.mirror": (0, 1),
    "augment.gamma": (0, 3),
    "augment.saturation": (0, 10),
    "augment.grey": (0, 1),
    "augment.light": (0, 1),
    "augment.blur": (0, 3),
    "augment.noise": (0, 255),
    "augment.jpeg": (0, 1),
    "augment.quality": (1, 100),
    "augment.occlusion": (0, 1),
    "evaluate.batch": (1, 4096),
    "evaluate.recentre": (0, 64),
    "synthetic.exemplars": (1, 10**6),
    "synthetic.tuning": (1, 10**6),
    "synthetic.testing": (1, 10**6),
    "synthetic.seed": (0, 2**63 - 1),
}


_RECIPES = Path(__file__).parent / "recipes"


def recipes() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(path.stem for path in _RECIPES.glob("*.toml"))


#: What settings were called in earlier versions; the files of old runs have all of them.
_RENAMED = {"train.average": "train.ema"}
#: Settings that are gone, and the value whose meaning is still the same.
_REMOVED = {"evaluate.average": False}

#: What `tomllib` raises; not all of it, as for numbers of thousands of digits or very deep lists, is its own error.
_NO_TOML = ValueError, RecursionError


def load_config(path: str | Path | None = None, assignments: list[str] | None = None) -> Config:
    """Read settings from a recipe or a TOML file, then apply KEY=VALUE texts.

    A KEY=VALUE of a general key also replaces what the file says for single networks.

    Parameters
    ----------
    path : str or path, optional
        Name of a recipe in the package (`recipes`), or a TOML file; default: the recipe "default".
    assignments : list of str, optional
        Each "KEY=VALUE".

    Raises
    ------
    InputError
        For a file that cannot be read, an unknown key, or a value of the wrong type or range.
    """
    source = str(path or "default")
    file = _RECIPES / f"{source}.toml" if source in recipes() else Path(source)
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        names = ", ".join(recipes())
        raise InputError(f"{source}: expected a TOML file or one of {names}, but {reason}") from None
    try:
        tree = tomllib.loads(text)
    except _NO_TOML as error:
        raise InputError(f"{source}: expected TOML, but {error}") from None
    values = _translated(dict(_flatten(tree)))
    for assignment in assignments or []:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment}: expected KEY=VALUE, for example train.steps=1000")
        key = key.strip()
        for name in [name for name in values if name.partition(".")[2] == key and name.split(".")[0] in NETWORKS]:
            del values[name]
        values[key] = _parse_value(value.strip())
        _check_key(f"--set {assignment}", key)
    return _build(source, values)


def _translated(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a file by today's names; those of single networks included."""
    translated = {}
    for key, value in values.items():
        first, _, rest = key.partition(".")
        prefix, general = (f"{first}.", rest) if first in NETWORKS else ("", key)
        if general not in _REMOVED or value != _REMOVED[general]:
            translated[prefix + _RENAMED.get(general, general)] = value
    return translated


def save_config(config: Config, path: str | Path) -> None:
    """Write `config` so that `load_config` reads the same."""
    Path(path).write_text(config_text(config))


def config_text(config: Config) -> str:
    """The TOML that `save_config` writes."""
    import tomli_w  # here: evaluation, parsing and the benchmarks read TOML only

    return tomli_w.dumps(_tree(config))


def flat(config: Config) -> dict[str, str]:
    """Dotted name -> value as text, of every setting, those of single networks included."""
    return {key: str(list(value) if isinstance(value, tuple) else value) for key, value in _flatten(_tree(config))}


def _tree(config: Config) -> dict[str, Any]:
    tree = asdict(config)
    tree.update(tree.pop("only"))
    return tree


def _flatten(tree: dict, prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse_value(text: str) -> Any:
    """A TOML value; anything else is taken as a text without quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except _NO_TOML:
        return text


def _known_keys() -> dict[str, Any]:
    """Dotted name -> default value, of every setting that is not for one network alone."""
    known = {}
    for entry in fields(Config):
        default = getattr(Config(), entry.name)
        if is_dataclass(default):
            known.update({f"{entry.name}.{inner.name}": getattr(default, inner.name) for inner in fields(default)})
        elif entry.name != "only":
            known[entry.name] = default
    return known


def _check_key(source: str, key: str) -> None:
    known = _known_keys()
    general = key.partition(".")[2] if key.split(".")[0] in NETWORKS else key
    for_one = general != key
    if general in known and (not for_one or general.split(".")[0] in _PER_NETWORK):
        return
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
    if for_one:
        allowed = [name for name in known if name.split(".")[0] in _PER_NETWORK]
        nearest = f"{key.split('.')[0]}.{difflib.get_close_matches(general, allowed, n=1, cutoff=0.0)[0]}"
    raise InputError(f"{source}: unknown setting {key!r}; the nearest known one is {nearest!r}")


def _check_value(source: str, key: str, value: Any, default: Any) -> Any:
    """`value` in the type of `default`, or InputError."""

    def refuse(expected: str) -> InputError:
        return InputError(f"{source}: {key}: expected {expected}, got {value!r}")

    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or len(value) != len(default):
            raise refuse(f"a list of {len(default)} numbers")
        value = tuple(_check_value(source, key, item, default[0]) for item in value)
        if value[0] > value[1]:
            raise refuse("the smaller number first")
        return value
    if isinstance(default, bool) != isinstance(value, bool):
        raise refuse("true or false" if isinstance(default, bool) else f"{type(default).__name__}")
    if isinstance(default, float) and isinstance(value, int):
        try:
            value = float(value)
        except OverflowError:
            raise InputError(f"{source}: {key}: expected a number, got one of {len(str(value))} digits") from None
    if not isinstance(value, type(default)):
        raise refuse({int: "a whole number", float: "a number", str: "a text"}[type(default)])
    if key in _CHOICES and value not in _CHOICES[key]:
        raise refuse(f"one of {', '.join(_CHOICES[key])}")
    if key in _RANGES and not _RANGES[key][0] <= value <= _RANGES[key][1]:
        raise refuse(f"a number from {_RANGES[key][0]} to {_RANGES[key][1]}")
    return value


def _build(source: str, values: dict[str, Any]) -> Config:
    known = _known_keys()
    tree: dict[str, Any] = {"only": {}}
    for key, value in values.items():
        _check_key(source, key)
        first, _, rest = key.partition(".")
        general = rest if first in NETWORKS else key
        value = _check_value(source, general, value, known[general])
        branch = tree["only"].setdefault(first, {}) if first in NETWORKS else tree
        section, _, name = general.rpartition(".")
        if section:
            branch.setdefault(section, {})[name] = value
        else:
            branch[name] = value
    sections = {"network": Network, "train": Train, "augment": Augment, "modulation": Modulation}
    sections.update({"evaluate": Evaluate, "synthetic": Synthetic, "card": Card})
    return Config(**{key: sections[key](**value) if key in sections else value for key, value in tree.items()})
