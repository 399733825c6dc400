"""Does every CUDA kernel compute what the reference does, without touching what it must not, in any order?"""

import pytest
import standin
from kernel_cases import CASES, run_case, run_cases

from minicnn.kernels.cuda.sources import read_source
from minicnn.kernels.signatures import SIGNATURES

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("device", "order")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel(case):
    run_case(case)


@pytest.mark.usefixtures("device")
def test_a_kernel_that_writes_beside_its_array_is_noticed_without_the_checker(monkeypatch):
    """As on a GPU: all numbers of the array itself are right."""
    right = "FOR_PIXELS(pixel, area) target[pixel] = hyperbolic_tangent(source[pixel]);"
    text = read_source("pool.cu")
    assert right in text
    monkeypatch.setattr(standin, "CHECKED", False)
    monkeypatch.setattr("kernel_cases.cases_of", lambda file: [case for case in CASES if case.kernel == "tanh_forward"])
    run_cases("pool.cu", text)
    with pytest.raises(AssertionError, match="y: the channels beside it were written to"):
        run_cases("pool.cu", text.replace(right, right.replace("area", "area + 1")))


def test_every_kernel_has_cases():
    for backend, kernels in (("cupy", set(SIGNATURES)), ("cublas", {n for n in SIGNATURES if "conv2d" in n})):
        assert {case.kernel for case in CASES if case.backend == backend} >= kernels - {"conv2d_tanh_forward"}
