"""Lets the backend "cupy" have the stand-in for CuPy, so that its kernels run here, on the CPU, under a checker."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parent / name) for name in ("checker", "fake_cupy", "mutation")]

import standin

_MODULES = ("device", "backend", "cublas")


@pytest.fixture
def device() -> Iterator[None]:
    """A GPU: the backends "cupy" and "cublas" can be used, and nothing goes on behind a test's back."""
    if shutil.which("g++") is None:
        if os.environ.get("ICNN_REQUIRE_CUDA_WHEELS") == "1":
            pytest.fail("g++ is needed to run CUDA kernels on the CPU")
        pytest.skip("g++ is needed to run CUDA kernels on the CPU")
    import minicnn.kernels.cuda

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", standin.cupy)
        for name in _MODULES:  # import them anew, and forget them afterwards
            patch.setitem(sys.modules, f"minicnn.kernels.cuda.{name}", None)
            patch.delitem(sys.modules, f"minicnn.kernels.cuda.{name}")
            patch.delattr(minicnn.kernels.cuda, name, raising=False)
        standin.configure()
        standin.STATS.reset()
        yield
        standin.finish()


@pytest.fixture(params=[0, 1, 2], ids=["ascending", "descending", "shuffled"])
def order(request, monkeypatch) -> None:
    """Of the threads of a block, and of the blocks."""
    monkeypatch.setattr(standin, "ORDER", request.param)
