"""``python benchmarks/parse_bench.py``: time inference by our engine, ONNX Runtime and PyTorch.

The networks are timed alone, and then inside the same pipeline. The engines
are timed alternately in each round, so that other load on the machine affects
all of them equally.
"""

import copy
import importlib
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from types import ModuleType
from typing import NamedTuple

import numpy as np
from measure import (
    LAYOUTS,
    ROUNDS,
    TURN,
    Goal,
    add_cases,
    find_torch,
    format_goals,
    machine,
    number_or_dash,
    result_file,
    time_turn,
    write_figures,
)
from whole_photographs import measure_whole

from icnn.cli import Parser, existing_folder, progress, run, text_table
from icnn.data.folder import SmithFolder
from icnn.export.writer import to_onnx
from icnn.model.pipeline import Predict, load_pipeline, predictor
from icnn.model.weights import SHIPPED, read_network
from icnn.stages import NETWORKS, PATCHES
from icnn.synthetic.faces import synthetic_faces
from minicnn import Graph, Plan
from minicnn.kernels import get_backend

#: One network for each number of classes and input side -> how many such inputs a face has.
KINDS = {"stage1": 1, "eye": sum(NETWORKS[patch.network].labels == 2 for patch in PATCHES), "mouth": 1}
FACE, END = "seven networks", "end to end"
AGREE = 1e-3  # tolerance relative to the largest logit: a larger difference means another network

#: Required and targeted speed-up of all networks of a face with the most threads, by batch: engine -> least, aim.
GOALS = {32: {"onnxruntime": (2.0, 2.6), "torch channels_last": (1.5, 2.0)}, 1: {"onnxruntime": (1.3, 2.0)}}


class Engine(NamedTuple):
    """An inference engine for the shipped networks.

    Attributes
    ----------
    name : str
    best_of : str
        Group of the engine; the fastest engine of a group is reported.
    build : callable
        ``build(network, batch, threads)`` returns a `Predict`.
    ready : callable
        ``ready(threads)`` is called before each measurement.
    """

    name: str
    best_of: str
    build: Callable[[str, int, int], Predict]
    ready: Callable[[int], object] = lambda threads: None


# ---- engines


def weights_of(name: str) -> tuple[Graph, dict[str, np.ndarray]]:
    """Return the graph and the parameters of a shipped network."""
    stored = read_network(SHIPPED, name)
    return stored.graph, stored.parameters


def own_network(name: str, batch: int, threads: int) -> Predict:
    graph, values = weights_of(name)
    plan = Plan(graph, batch, "numba", threads=threads)
    for key, array in plan.parameters.items():
        plan.upload(array, values[key])
    return predictor(plan)


def onnx_network(onnx: ModuleType, runtime: ModuleType, name: str, batch: int, threads: int) -> Predict:
    """Build ONNX Runtime's network, without normalisation and background modulation, which our pipeline applies."""
    graph, values = weights_of(name)
    model = onnx.shape_inference.infer_shapes(to_onnx(graph, values))
    cut = onnx.utils.Extractor(model).extract_model(["norm/image"], [graph.output.name])
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads may spin between the operators of a run, which is faster, but must not disturb other engines after it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(cut.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"norm/image": images})[0]


def torch_network(torch: ModuleType, layout: str, compiled: bool, name: str, batch: int, threads: int) -> Predict:
    """Build PyTorch's network in inference mode; a compiled one is recompiled for each batch size."""
    from torch_twin import TorchNet

    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    net = TorchNet(*weights_of(name)).eval()
    for array in net.parameters():
        array.requires_grad_(False)
        if array.ndim == 4:
            array.data = array.data.contiguous(memory_format=memory)
    if compiled:
        torch.set_num_threads(threads)  # the compiled code contains the number of threads
        # freezing packs the weights once, as ONNX Runtime does
        net = torch.compile(net, dynamic=False, options={"freezing": True})

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return net(torch.from_numpy(images).contiguous(memory_format=memory)).numpy()

    return predict


def find_engines(compiled: bool) -> list[Engine]:
    """Return our engine, then the others that are installed."""
    engines = [Engine("ours", "ours", own_network)]
    try:
        importlib.import_module("onnx.utils")
        onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    except (ImportError, OSError):
        print("parse_bench: no onnx and onnxruntime here", file=sys.stderr)
    else:
        engines.append(Engine("onnxruntime", "onnxruntime", partial(onnx_network, onnx, runtime)))
    if torch := find_torch():
        if compiled:
            # each network, batch and number of threads is another compilation of the same code
            importlib.import_module("torch._dynamo").config.recompile_limit = 1000
        for layout in LAYOUTS:
            for by_compiler in (False, True) if compiled else (False,):
                name = f"torch {layout}{' compiled' if by_compiler else ''}"
                build = partial(torch_network, torch, layout, by_compiler)
                engines.append(Engine(name, f"torch {layout}", build, torch.set_num_threads))
    else:
        print("parse_bench: no torch here", file=sys.stderr)
    return engines


# ---- timing


class Case(NamedTuple):
    """A measurement: one network or all, a batch size, a number of threads."""

    what: str
    batch: int
    threads: int


#: Images (one network) or faces (all networks) per second, by the engine's `best_of`.
Rates = dict[str, float]


def take_turns(calls: Sequence[tuple[Engine, Callable[[], object]]], case: Case, rounds: int, least: float) -> Rates:
    """Time the engines alternately; return each group's rate from the median over the rounds.

    Parameters
    ----------
    calls : sequence of (Engine, callable)
    case : Case
    rounds : int
    least : float
        Minimum seconds of one measurement.
    """
    seconds: dict[Engine, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for engine, call in calls:
            engine.ready(case.threads)
            seconds[engine].append(time_turn(call, least))
    rates: Rates = {}
    for engine, times in seconds.items():
        rates[engine.best_of] = max(rates.get(engine.best_of, 0.0), case.batch / median(times))
    return rates


def network_rates(case: Case, engines: Sequence[Engine], rounds: int, least: float) -> Rates:
    """Return the images per second of one network by every engine.

    Raises
    ------
    RuntimeError
        If an engine's logits differ from ours.
    """
    size = NETWORKS[case.what].size
    images = np.random.default_rng(0).standard_normal((case.batch, 3, size, size)).astype(np.float32)
    calls, expected = [], None
    for engine in engines:
        engine.ready(case.threads)
        predict = engine.build(case.what, case.batch, case.threads)
        logits = predict(images)
        expected = logits if expected is None else expected
        if (error := np.abs(logits - expected).max()) > AGREE * np.abs(expected).max():
            raise RuntimeError(f"{engine.name} computes other logits than ours, by up to {error:.3g}")
        calls.append((engine, partial(predict, images)))
    return take_turns(calls, case, rounds, least)


def pipeline_rates(
    case: Case, engines: Sequence[Engine], faces: Sequence[np.ndarray], rounds: int, least: float
) -> Rates:
    """Return the faces per second of the pipeline, from pixels to label maps, with each engine's networks."""
    ours = load_pipeline(SHIPPED, "numba", case.batch, case.threads)
    images = [faces[n % len(faces)] for n in range(case.batch)]
    calls = []
    for engine in engines:
        if engine.name.endswith("compiled"):
            continue  # some patches are cropped again, in batches of any size: each size would be compiled
        pipeline = copy.copy(ours)
        if engine.name != "ours":
            pipeline.networks = {name: engine.build(name, case.batch, case.threads) for name in NETWORKS}
        calls.append((engine, partial(pipeline.parse, images)))
    return take_turns(calls, case, rounds, least)


# ---- tables


class Row(NamedTuple):
    case: Case
    rates: Rates

    def ratio(self, engine: str) -> float | None:
        """Return our speed relative to an engine, or None if it was not measured."""
        return self.rates["ours"] / self.rates[engine] if engine in self.rates else None


def with_faces(rows: Sequence[Row]) -> list[Row]:
    """Add rows for all networks that a face needs, one stage 1 and six patches, to the rows of single networks."""
    seconds: dict[tuple[int, int], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for case, rates in rows:
        for engine, rate in rates.items():
            seconds[case.batch, case.threads][engine] += KINDS[case.what] / rate
    faces = [
        Row(Case(FACE, *key), {engine: 1 / spent for engine, spent in times.items()}) for key, times in seconds.items()
    ]
    return [*rows, *faces]


def format_rows(rows: Sequence[Row]) -> str:
    """Format a table with our rates and, for each other engine, its rate and our relative speed."""
    others = [name for name in dict.fromkeys(name for row in rows for name in row.rates) if name != "ours"]
    heads = ["a second", "batch", "threads", "ours"]
    lines = [[*heads, *(cell for name in others for cell in (name, "ratio"))]]
    for row in rows:
        cells = [row.case.what, str(row.case.batch), str(row.case.threads), f"{row.rates['ours']:.1f}"]
        for name in others:
            cells += [number_or_dash(row.rates.get(name), ".1f"), number_or_dash(row.ratio(name), ".2f")]
        lines.append(cells)
    return text_table(lines, 1)


def goals_of(rows: Sequence[Row]) -> list[Goal]:
    """Compare the speed-ups of all networks of a face with `GOALS`."""
    goals = []
    faces = {row.case: row for row in rows if row.case.what == FACE}
    most = max((case.threads for case in faces), default=0)
    for batch, bounds in GOALS.items():
        if row := faces.get(Case(FACE, batch, most)):
            for engine, (least, aim) in bounds.items():
                if ratio := row.ratio(engine):
                    text = f"{FACE}, batch {batch}, {most} threads, against {engine}"
                    goals.append(Goal(text, ratio, least, aim))
    return goals


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = Parser(
        prog="python benchmarks/parse_bench.py",
        description="Time the networks alone and the whole pipeline with the shipped weights, beside ONNX Runtime and "
        "PyTorch where they are installed. Rates are images a second for one network, faces for all.",
    )
    parser.add_argument("--json", type=result_file, metavar="FILE", help="also write the figures as JSON")
    add_cases(parser, [1, 32])
    parser.add_argument("--data", type=existing_folder, metavar="DIR", help="photographs (default: synthetic faces)")
    parser.add_argument(
        "--whole",
        type=existing_folder,
        metavar="DIR",
        help="instead, parse the whole photographs of DIR/images; F where DIR/truth/NAME.png has their ids",
    )
    parser.add_argument("--quick", action="store_true", help="eager, two short rounds: does it run?")
    options = parser.parse_args(argv)
    get_backend("numba")
    if options.whole:
        measure_whole(options.whole, max(options.threads), options.json)
        return 0
    engines = find_engines(compiled=not (options.no_compile or options.quick))
    rounds, least = (2, 0.0) if options.quick else (ROUNDS, TURN)
    most = max(options.batch)
    if options.data:
        faces = [face.image for face in SmithFolder(str(options.data)).load_split("tuning")[:most]]
    else:
        faces = [face.image for face in synthetic_faces(most, 0, "tuning")]
    settings = [(batch, threads) for batch in options.batch for threads in options.threads]
    cases = [Case(name, *setting) for setting in settings for name in KINDS]
    alone = [Row(case, network_rates(case, engines, rounds, least)) for case in progress(cases, "networks")]
    ends = [Case(END, *setting) for setting in settings]
    whole = [Row(case, pipeline_rates(case, engines, faces, rounds, least)) for case in progress(ends, END)]
    rows = [*with_faces(alone), *whole]
    print(machine())
    print(format_rows(rows))
    if goals := goals_of(rows):
        print(format_goals(goals))
    if options.json:
        write_figures(options.json, machine(), rows=[{**row.case._asdict(), "rates": row.rates} for row in rows])
    return 0


if __name__ == "__main__":
    run(main, "parse_bench")
