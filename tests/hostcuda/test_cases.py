"""Does every CUDA kernel compute what the reference does, without touching what it must not, in any order?"""

import pytest
from kernel_cases import CASES, run_case

from minicnn.kernels import SIGNATURES


@pytest.mark.usefixtures("device", "order")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel(case):
    run_case(case)


def test_every_kernel_has_cases():
    for backend, kernels in (("cupy", set(SIGNATURES)), ("cublas", {n for n in SIGNATURES if "conv2d" in n})):
        assert {case.kernel for case in CASES if case.backend == backend} >= kernels - {"conv2d_tanh_forward"}
