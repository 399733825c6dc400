"""Does the GPU backend say in one line why it cannot be used on a machine, and does "auto" then go on without it?"""

import os
import sys
import tomllib
from pathlib import Path

import pytest
import standin
import wheels
from commands import refused

from icnn.cli import compilation_announced
from minicnn.kernels import BackendError, choose_backend, get_backend

pytestmark = pytest.mark.usefixtures("device")

#: What is the matter with the machine, and what the user reads.
MACHINES = {
    "no driver": ({"driver": None}, "no NVIDIA driver was found (cudaErrorInsufficientDriver)"),
    "old driver": (
        {"driver": 11080},
        "the NVIDIA driver is too old: expected one for CUDA 12.9, as CuPy is, got one for CUDA 11.8; "
        "try a newer driver or a CuPy for CUDA 11 (cudaErrorInsufficientDriver)",
    ),
    "no device": ({"devices": 0}, "no NVIDIA GPU was found (cudaErrorNoDevice)"),
    "too old": ({"compute_capability": "61"}, "the GPU is too old: compute capability 6.1, expected 7.0 or newer"),
    "no compiler": ({"nvrtc": False}, "NVRTC, CUDA's compiler, does not work (Failure finding"),
    "no memory": ({"memory": 100 << 20}, "too little memory is free on the GPU"),
}


@pytest.mark.parametrize(("facts", "text"), MACHINES.values(), ids=MACHINES)
def test_why_a_gpu_cannot_be_used(facts, text):
    standin.configure(**facts)
    for name in ("cupy", "cublas"):
        with pytest.raises(BackendError) as caught:
            get_backend(name)
        assert str(caught.value).startswith(f"backend {name!r} cannot be used here: {text}")
        assert str(caught.value).endswith("; use numba or numpy") and "\n" not in str(caught.value)
    name, reason = choose_backend("auto")
    assert name == "numba" and text in reason and "\n" not in reason


@pytest.mark.parametrize(
    ("version", "warned"), [("14.1.1", True), ("13.6.0", True), ("14.2.0", False), ("15.0.0b1", False)]
)
def test_a_cupy_that_keeps_no_compiled_kernels_is_warned_of(monkeypatch, caplog, version, warned):
    monkeypatch.setattr(standin.cupy, "__version__", version)
    get_backend("cupy")
    assert (f"CuPy {version} compiles all kernels anew in every process; expected 14.2" in caplog.text) == warned


def test_the_extras_ask_for_a_cupy_that_keeps_compiled_kernels():
    extras = tomllib.loads((wheels.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = [text for extra in extras.values() for text in extra if text.startswith("cupy")]
    assert len(asked) == 3 and all(text.endswith(">=14.2") for text in asked)


def test_a_missing_cupy_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match=r"CuPy is not installed .*pip install 'icnn\[cuda12\]'"):
        get_backend("cupy")


def test_streams_that_do_not_wait_for_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM", "1")
    with pytest.raises(BackendError, match="unset CUPY_CUDA_PER_THREAD_DEFAULT_STREAM"):
        get_backend("cupy")


def test_a_training_without_a_gpu_ends_with_one_line(tmp_path):
    standin.configure(driver=None)
    refused("train", "--backend", "cupy", "--out", tmp_path / "run", words="no NVIDIA driver was found")
    assert not (tmp_path / "run").exists()


def test_an_unwritable_cache_is_replaced(monkeypatch, tmp_path, caplog):
    folder = tmp_path / "cache"
    folder.write_text("a file stands where the folder should be")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(folder))
    kernels = get_backend("cupy")
    assert float(kernels.download(kernels.zeros((1,), "float32"))[0]) == 0
    assert os.environ["CUPY_CACHE_DIR"] != str(folder) and Path(os.environ["CUPY_CACHE_DIR"]).is_dir()
    assert "set CUPY_CACHE_DIR" in caplog.text


def test_a_writable_cache_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    get_backend("cupy")
    assert os.environ["CUPY_CACHE_DIR"] == str(tmp_path / "cache")


def test_compilation_is_announced(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ICNN_HOSTCUDA_CACHE", str(tmp_path))
    kernels = get_backend("cupy")
    with compilation_announced():
        kernels.parity_maps(kernels.zeros((1, 2, 3, 3), "float32"), 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("compiling kernels") and lines[1].startswith("compiled 1 kernels in ")
