"""The backends of a GPU in turn, for tests that are skipped where there is none."""

import sys
from functools import cache
from pathlib import Path

import pytest

from minicnn.kernels import BackendError, get_backend

sys.path.append(str(Path(__file__).parents[1] / "hostcuda"))  # for kernel_cases


@cache
def reason_to_skip() -> str:
    """Why the GPU's backends cannot be tested here; nothing: ""."""
    try:
        get_backend("cupy")
    except BackendError as error:
        return str(error)
    return ""


@pytest.fixture(autouse=True)
def device():
    """A GPU, or a skip."""
    if reason := reason_to_skip():
        pytest.skip(reason)


@pytest.fixture(params=["cupy", "cublas"])
def backend(request, device) -> str:
    """Name of each backend of the GPU in turn."""
    return request.param
