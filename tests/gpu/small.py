"""A little of everything that runs on a GPU, for a checker that makes it a hundred times slower.

Each array has memory of its own: in a block of CuPy's pool a kernel that writes beside its array would go unnoticed.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(path) for path in (TESTS.parent, TESTS, TESTS / "hostcuda")]

from checks import is_simulated, trained  # noqa: E402
from kernel_cases import CASES, run_case  # noqa: E402

from minicnn.kernels import get_backend  # noqa: E402

get_backend("cupy").cupy.cuda.set_allocator(None)

#: cuBLAS has findings of its own, which are not ours to judge.
for case in CASES:
    if case.backend == "cupy":
        run_case(case)
trained(3, labels=2, size=8 if is_simulated() else 16, batch=2, captured=True)
