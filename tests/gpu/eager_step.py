"""One eager training step of the most important network, its kernels loaded before: for Nsight Compute."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(path) for path in (TESTS.parent, TESTS.parent / "benchmarks")]

from checks import extent  # noqa: E402
from gpu_steps import own_variants  # noqa: E402
from step_cases import StepCase  # noqa: E402

from minicnn.kernels import get_backend  # noqa: E402

next(own_variants(StepCase(*extent().kinds[0], extent().exact[0]), ("eager",)))  # makes a step
get_backend("cupy").cupy.cuda.Device().synchronize()
