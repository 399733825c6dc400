"""Settings of a run: TOML files, ``--set KEY=VALUE``, and what is saved with the weights.

A setting has one dotted name, for example ``train.lr``. Any of ``train.*`` and
``augment.*`` may be given for one network alone by putting its name in front:
``eye.train.lr``. Unknown names are refused with the nearest known one.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from icnn.errors import InputError
from icnn.stages import NETWORKS


def setting(default: Any, *choices: str, least: float | None = None, most: float | None = None) -> Any:
    """Declare a setting: its default, whose type it must have, and the allowed texts or the range of numbers."""
    return field(default=default, metadata={"choices": choices, "least": least, "most": most})


@dataclass(frozen=True)
class Network:
    """Which of `icnn.model.network.PRESETS` is built."""

    preset: str = setting("paper", "paper", "released", "separate")


@dataclass(frozen=True)
class Train:
    """Training of one network (Sec. 2.5 and 4.2)."""

    batch: int = setting(10, least=1, most=4096)
    #: Parts of a batch whose gradients are summed; each MPI process takes at least one.
    shards: int = setting(1, least=1, most=4096)
    steps: int = setting(4000, least=1, most=10**9)
    lr: float = setting(0.05, least=0, most=1e38)
    #: "cosine" falls to 0 at the last step.
    schedule: str = setting("cosine", "cosine", "constant")
    #: Linear warm-up, as a fraction of the steps.
    warmup: float = setting(0.05, least=0, most=1)
    momentum: float = setting(0.9, least=0, most=0.999999)
    nesterov: bool = setting(True)
    weight_decay: float = setting(1e-5, least=0, most=1e6)
    #: Factor applied to every parameter at each step (the released program's decay).
    shrink: float = setting(1.0, least=0, most=1)
    #: Steps between validations.
    validate_every: int = setting(200, least=1, most=10**9)
    #: Stop after this many validations without a better F (0 disables).
    patience: int = setting(0, least=0, most=10**9)
    #: Stop after the validation loss has risen this many times in a row (0 disables).
    stop_after_rises: int = setting(0, least=0, most=10**9)
    #: EMA decay per step; the averaged weights are validated and saved (0 disables).
    ema: float = setting(0.0, least=0, most=0.999999)
    #: Loss weight of a part's pixels; background pixels have weight 1.
    part_weight: float = setting(1.0, least=1e-3, most=1e3)
    #: Which weights are saved: those of the best validation F, or the last.
    keep: str = setting("best", "best", "last")
    #: "threshold": the arg-max part if its map exceeds 50 of 255, else background.
    label_rule: str = setting("argmax", "argmax", "threshold")
    #: Centre of a training patch: the per-axis median of a part's true pixels, or the middle of their bounding box.
    centre: str = setting("median", "median", "box")


@dataclass(frozen=True)
class Augment:
    """Augmentation, drawn anew each time an image enters the network (Sec. 4.2)."""

    #: Largest rotation, degrees.
    rotation: float = setting(15.0, least=0, most=180)
    scale: tuple[float, float] = setting((0.9, 1.1), least=0.1, most=10)
    #: Largest shift along each axis, network pixels.
    shift: float = setting(10.0, least=0, most=64)
    #: Largest relative change of the height against the width.
    stretch: float = setting(0.0, least=0, most=0.9)
    #: Largest shear, pixels along a row per row.
    shear: float = setting(0.0, least=0, most=1)
    #: Probability of mirroring; left and right swap in stage 1.
    mirror: float = setting(0.0, least=0, most=1)
    #: "batch": one draw for all images of a mini-batch.
    draw: str = setting("input", "input", "batch")
    # Photometric augmentation (`icnn.data.photometric`).
    #: Largest absolute logarithm of the tone curve's exponent.
    gamma: float = setting(0.0, least=0, most=3)
    saturation: tuple[float, float] = setting((1.0, 1.0), least=0, most=10)
    #: Probability of removing the colours.
    grey: float = setting(0.0, least=0, most=1)
    #: Largest relative change of brightness from the middle to the border, along each axis.
    light: float = setting(0.0, least=0, most=1)
    #: Largest standard deviation of a blur, pixels; half of the inputs stay sharp.
    blur: float = setting(0.0, least=0, most=3)
    #: Largest standard deviation of noise, grey levels.
    noise: float = setting(0.0, least=0, most=255)
    #: Probability of JPEG compression, and its quality.
    jpeg: float = setting(0.0, least=0, most=1)
    quality: tuple[float, float] = setting((20.0, 90.0), least=1, most=100)
    #: Probability of an occluder in front of the face.
    occlusion: float = setting(0.0, least=0, most=1)


@dataclass(frozen=True)
class Modulation:
    """How beta and beta0 are fitted (Sec. 4.2)."""

    method: str = setting("lbfgsb", "lbfgsb", "neldermead", "none")


@dataclass(frozen=True)
class Evaluate:
    """Evaluation split, batch size and inference options."""

    split: str = setting("tuning", "exemplars", "tuning", "testing")
    batch: int = setting(32, least=1, most=4096)
    #: Cut a patch once more if its part's median lies this many pixels from its middle (0 disables).
    recentre: float = setting(0.0, least=0, most=64)


@dataclass(frozen=True)
class Card:
    """Model card: what the weights were computed from, and what may be done with them."""

    data: str = setting("")
    terms: str = setting("")


@dataclass(frozen=True)
class Synthetic:
    """Numbers of synthetic faces, used without --data."""

    exemplars: int = setting(400, least=1, most=10**6)
    tuning: int = setting(50, least=1, most=10**6)
    testing: int = setting(100, least=1, most=10**6)
    seed: int = setting(0, least=0, most=2**63 - 1)


@dataclass(frozen=True)
class Config:
    """All settings of a run. `only` holds those of single networks: name -> section -> key -> value."""

    seed: int = setting(0, least=0, most=2**63 - 1)
    #: CPU threads (0: all cores).
    threads: int = setting(0, least=0, most=4096)
    #: A folder in the layout of Smith et al.; "" stands for synthetic faces.
    data: str = setting("")
    network: Network = field(default_factory=Network)
    train: Train = field(default_factory=Train)
    augment: Augment = field(default_factory=Augment)
    modulation: Modulation = field(default_factory=Modulation)
    evaluate: Evaluate = field(default_factory=Evaluate)
    synthetic: Synthetic = field(default_factory=Synthetic)
    card: Card = field(default_factory=Card)
    only: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def for_network(self, name: str) -> tuple[Train, Augment]:
        """Return the training and augmentation settings of one network."""
        only = self.only.get(name, {})
        return replace(self.train, **only.get("train", {})), replace(self.augment, **only.get("augment", {}))


_PER_NETWORK = ("train", "augment")

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
    """Return the values of a file under their present names, those of single networks included."""
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
    """Return the TOML that `save_config` writes."""
    import tomli_w  # here: evaluation, parsing and the benchmarks read TOML only

    return tomli_w.dumps(_tree(config))


def flat(config: Config) -> dict[str, str]:
    """Return every setting, those of single networks included, as dotted name -> value as text."""
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
    """Parse a TOML value; anything else is taken as a text without quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except _NO_TOML:
        return text


def _known_keys() -> dict[str, Field]:
    """Return dotted name -> field of every setting that is not for one network alone."""
    known = {}
    for entry in fields(Config):
        section = getattr(Config(), entry.name)
        if is_dataclass(section):
            known.update({f"{entry.name}.{inner.name}": inner for inner in fields(section)})
        elif entry.name != "only":
            known[entry.name] = entry
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


def _check_value(source: str, key: str, value: Any, entry: Field) -> Any:
    """Return `value` in the type of a field's default, or raise InputError."""
    if not isinstance(entry.default, tuple):
        return _check_one(source, key, value, entry.default, entry.metadata)
    if not isinstance(value, list | tuple) or len(value) != len(entry.default):
        raise InputError(f"{source}: {key}: expected a list of {len(entry.default)} numbers, got {value!r}")
    low, high = (_check_one(source, key, item, entry.default[0], entry.metadata) for item in value)
    if low > high:
        raise InputError(f"{source}: {key}: expected the smaller number first, got {(low, high)!r}")
    return low, high


def _check_one(source: str, key: str, value: Any, default: Any, allowed: Mapping[str, Any]) -> Any:
    """Return one number, text or truth value in the type of `default`, or raise InputError."""

    def refuse(expected: str) -> InputError:
        return InputError(f"{source}: {key}: expected {expected}, got {value!r}")

    if isinstance(default, bool) != isinstance(value, bool):
        raise refuse("true or false" if isinstance(default, bool) else f"{type(default).__name__}")
    if isinstance(default, float) and isinstance(value, int):
        try:
            value = float(value)
        except OverflowError:
            raise InputError(f"{source}: {key}: expected a number, got one of {len(str(value))} digits") from None
    if not isinstance(value, type(default)):
        raise refuse({int: "a whole number", float: "a number", str: "a text"}[type(default)])
    if allowed["choices"] and value not in allowed["choices"]:
        raise refuse(f"one of {', '.join(allowed['choices'])}")
    if allowed["least"] is not None and not allowed["least"] <= value <= allowed["most"]:
        raise refuse(f"a number from {allowed['least']} to {allowed['most']}")
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
