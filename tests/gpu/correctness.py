"""Parts of the report that say whether a GPU computes what it should."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
from checks import LR, OPTIMISER, Lesson, extent, is_simulated, largest_difference, same_bits, trained
from contenders import cuda_torch
from gpu_model import step_tiles
from kernel_cases import CASES, run_case
from measure import find_torch
from part import Part
from step_cases import StepCase

from minicnn import Plan
from minicnn.kernels import get_backend
from minicnn.kernels.cuda.sources import compiled_with

CURVES = 1e-3  # by which training curves may differ
GRADIENTS = 1e-4  # most relative norm of a float32 gradient's error
#: One of each file's small kernels, which are compiled together.
SMALL_KERNELS = (
    ("pool.cu", "tanh_forward<float>"),
    ("loss.cu", "sgd_update<float>"),
    ("conv_weights.cu", "sum_parts<float>"),
)


def compilation(part: Part) -> None:
    """Compile every instance that the networks' steps launch, as many at a time as there are cores."""
    gpu = get_backend("cupy")
    seen = extent()
    tiles = [
        (tile.file, tile.expression)
        for labels, size in seen.kinds
        for batch in sorted({*seen.batches, *seen.exact})
        for tile in step_tiles(StepCase(labels, size, batch).graph(), batch)
    ]
    instances = {(file, compiled_with(file, expression)) for file, expression in [*tiles, *SMALL_KERNELS]}

    def compile_one(instance: tuple[str, tuple[str, ...]]) -> tuple[float, str]:
        start = time.perf_counter()
        gpu.module_of(*instance)
        return time.perf_counter() - start, instance[1][0]

    start = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        times = sorted(pool.map(compile_one, sorted(instances)), reverse=True)
    part.put(
        instances=len(times),
        seconds_in_all=time.perf_counter() - start,
        slowest=[{"instance": name, "seconds": seconds} for seconds, name in times[:5]],
    )


def kernel_cases(part: Part) -> None:
    """Every kernel's cases against the reference, and what lies beside each array against what lay there before."""
    passed = 0
    for case in CASES:
        if part.left() <= 0:
            part.lack(f"{len(CASES) - passed} of {len(CASES)} cases: no time was left")
            return
        try:
            run_case(case)
        except AssertionError as error:
            part.require(False, f"{case}: {' '.join(str(error).split())[:300]}")
        else:
            passed += 1
    part.put(cases=len(CASES), passed=passed)


def graphs(part: Part) -> None:
    """Captured steps against eager ones, and against themselves, to the bit."""
    labels, size = extent().kinds[0]
    found = []
    for batch in extent().exact:
        first, again = (trained(3, labels, size, batch, captured=True) for _ in range(2))
        eager = trained(3, labels, size, batch, captured=False)
        row = {"batch": batch, "captured_is_eager": same_bits(first, eager), "same_twice": same_bits(first, again)}
        found.append(row)
        part.put(batches=found)
        for name in ("captured_is_eager", "same_twice"):
            part.require(row[name], f"batch {batch}: {name.replace('_', ' ')}: no")


# ---- against float64


def accuracy(part: Part) -> None:
    """Logits and every gradient of one batch, ours and PyTorch's, against float64."""
    case = StepCase(*extent().kinds[0], extent().exact[0])
    torch = cuda_torch(find_torch())
    plan = Plan(case.graph(), case.batch, "cupy")
    values = {name: plan.download(array) for name, array in plan.parameters.items()}
    others = _torch_contenders(torch, case, values) if torch else {}
    exact = others.pop("float64")() if torch else _results(case, "numpy", "float64", values)
    part.put(exact="PyTorch in float64" if torch else "the reference in float64", rows=[])
    contenders = {"ours": lambda: _results(case, "cupy", "float32", values), **others}
    for name, compute in contenders.items():
        if name != "ours" and part.left() <= 0:
            part.lack(f"{name}: no time was left")
            continue
        errors = {key: relative_norm(array, exact[key]) for key, array in compute().items()}
        worst = max((key for key in errors if key != "logits"), key=lambda key: errors[key])
        row = {"what": name, "logits": errors["logits"], "largest_gradient": errors[worst], "of": worst}
        part.put(rows=[*part.found["rows"], row])
        if name == "ours":
            part.require(max(errors.values()) < GRADIENTS, f"{worst}: error {errors[worst]:.1e}, limit {GRADIENTS:.1e}")
    if not torch:
        part.lack("PyTorch's errors: there is no PyTorch with CUDA")


def relative_norm(array: np.ndarray, exact: np.ndarray) -> float:
    """Norm of the difference over the norm of `exact`."""
    return float(np.linalg.norm(array.astype(np.float64) - exact) / max(np.linalg.norm(exact), 1e-300))


def _results(case: StepCase, backend: str, dtype: str, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits and gradients of one of our backends."""
    plan = Plan(case.graph(), case.batch, backend, dtype)
    plan.assign(values)
    images, labels = case.inputs()
    logits = plan.download(plan.forward(images))
    plan.loss(labels)
    plan.backward()
    return {"logits": logits, **{name: plan.download(array) for name, array in plan.gradients.items()}}


def _torch_contenders(
    torch: ModuleType, case: StepCase, values: dict[str, np.ndarray]
) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    from torch_twin import TorchStep, tensor_cores

    def results(dtype: str, tf32: bool) -> dict[str, np.ndarray]:
        with tensor_cores(tf32):
            logits, gradients = TorchStep(case.graph(), values, *case.inputs(), device="cuda", dtype=dtype).gradients()
        return {"logits": logits, **gradients}

    return {
        "float64": lambda: results("float64", False),
        "torch float32": lambda: results("float32", False),
        "torch TF32": lambda: results("float32", True),
    }


# ---- training


def curves(part: Part) -> None:
    """The same training by numba, by the GPU and by PyTorch."""
    lesson = Lesson.of(*extent().curve)
    contenders: dict[str, Callable[[], list[float]]] = {
        "cupy": lambda: lesson.curve("cupy"),
        "numba": lambda: lesson.curve("numba"),
    }
    if torch := cuda_torch(find_torch()):
        contenders |= {
            "torch float32": lambda: _torch_curve(torch, lesson, False),
            "torch TF32": lambda: _torch_curve(torch, lesson, True),
        }
    else:
        part.lack("PyTorch's curves: there is no PyTorch with CUDA")
    losses: dict[str, list[float]] = {}
    for name, train in contenders.items():
        if part.left() <= 0:
            part.lack(f"{name}: no time was left")
            continue
        losses[name] = train()
        part.put(losses=losses)
    if "numba" in losses:
        differences = {name: largest_difference(values, losses["numba"]) for name, values in losses.items()}
        part.put(largest_difference_from_numba=differences, limit=CURVES)
        part.require(differences["cupy"] < CURVES, f"the curve is {differences['cupy']:.1e} away from numba's")
    if not is_simulated():
        part.require(losses["cupy"][-1] < losses["cupy"][0] / 4, "the loss did not fall to a quarter")


def _torch_curve(torch: ModuleType, lesson: Lesson, tf32: bool) -> list[float]:
    from torch_twin import TorchStep, tensor_cores

    plan = lesson.plan("numpy")
    settings = {"lr": LR, "momentum": OPTIMISER.momentum, "weight_decay": OPTIMISER.weight_decay}
    first = lesson.batches[0]
    with tensor_cores(tf32):
        step = TorchStep(
            plan.graph, dict(plan.parameters), lesson.images[first], lesson.labels[first], device="cuda", **settings
        )
        losses = []
        for rows in lesson.batches:
            step.feed(lesson.images[rows], lesson.labels[rows])
            losses.append(float(step()))
    return losses
