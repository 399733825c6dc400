"""The backends of a GPU in turn, for tests that are skipped where there is none.

Without a GPU they run on the stand-in for CuPy, if it is in place: PYTHONPATH=tests/hostcuda/in_place.
"""

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from minicnn.kernels import BackendError, get_backend

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "hostcuda"), str(TESTS / "test_minicnn")]  # for kernel_cases, and the library's own tests


@cache
def reason_to_skip() -> str:
    """Why the GPU's backends cannot be tested here; nothing: ""."""
    try:
        get_backend("cupy")
    except BackendError as error:
        return str(error)
    return ""


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    """A GPU, or a skip. What a test has asked for is done before the next one: an error is seen where it belongs."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    yield
    get_backend("cupy").cupy.cuda.Device().synchronize()


@pytest.fixture(params=["cupy", "cublas"])
def backend(request, device) -> str:
    """Name of each backend of the GPU in turn."""
    return request.param
