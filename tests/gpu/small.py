"""A little of everything that runs on a GPU, for a checker that makes it a hundred times slower."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(path) for path in (TESTS.parent, TESTS, TESTS / "hostcuda")]

from checks import captured_and_eager  # noqa: E402
from kernel_cases import CASES, run_case  # noqa: E402

#: cuBLAS has findings of its own, which are not ours to judge.
for case in CASES:
    if case.backend == "cupy":
        run_case(case)
captured_and_eager(steps=3, size=16, batch=2)
