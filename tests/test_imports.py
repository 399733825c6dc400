"""Does each module import only what stands above it, and nothing heavy that was not asked for?"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import minicnn

ROOT = Path(minicnn.__file__).parents[1]

#: Every module, in the order in which they are read: each imports only from the lines above its own.
#: A name here need not exist yet; a file that is not here fails the test.
# fmt: off
ORDER = [
    "minicnn.kernels",
    "minicnn.kernels.host", "minicnn.kernels.reference",
    "minicnn.kernels.checks",
    "minicnn.kernels.cache", "minicnn.kernels.jit", "minicnn.kernels.planes", "minicnn.kernels.simd",
    "minicnn.kernels.cpu_correlation", "minicnn.kernels.cpu_weight_gradient", "minicnn.kernels.cpu",
    "minicnn.kernels.gpu_tiles", "minicnn.kernels.gpu", "minicnn.kernels.gpu_im2col",
    "minicnn.layers",
    "minicnn.graph",
    "minicnn.schedule", "minicnn.memory", "minicnn.parameters", "minicnn.loss", "minicnn.sgd", "minicnn.checkpoint",
    "minicnn.plan",
    "minicnn.team",
    "minicnn.gradcheck",
    "minicnn",
    "icnn.errors", "icnn.palette", "icnn.parts", "icnn.config",
    "icnn.command",
    "icnn.photograph", "icnn.dataset",
    "icnn.canvas", "icnn.surroundings", "icnn.synthetic",
    "icnn.metrics", "icnn.baselines",
    "icnn.augment", "icnn.appearance", "icnn.localise", "icnn.batches",
    "icnn.framing", "icnn.contours", "icnn.foreign", "icnn.convert",
    "icnn.network",
    "icnn.modulation", "icnn.stored",
    "icnn.pipeline",
    "icnn.evaluation",
    "icnn.search", "icnn.detect", "icnn.parser",
    "icnn.charts", "icnn.pictures", "icnn.page", "icnn.showcase",
    "icnn.runs", "icnn.watch", "icnn.training",
    "icnn.train", "icnn.evaluate", "icnn.report", "icnn.jobs", "icnn.parse", "icnn.export", "icnn.serve",
    "icnn.__main__",
    "icnn",
]
# fmt: on

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("minicnn", "icnn")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """Full names of all that a module imports, also inside functions; `from p import m` gives p.m if that is a file."""
    path, found = FILES[module], set()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            names = {f"{base}.{alias.name}" for alias in node.names}
            found.update(names & set(FILES) or {base})
            if names - set(FILES):
                found.add(base)
    return found


def test_the_files_are_found():
    assert {"minicnn", "minicnn.kernels.cpu", "icnn.network"} <= set(FILES)
    assert {"minicnn.kernels.cpu_correlation", "numba", "math"} <= imports("minicnn.kernels.cpu")


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_what_stands_above_it(module):
    assert module in ORDER, f"{module} is new: give it a place in ORDER of {Path(__file__).name}"
    above = set(ORDER[: ORDER.index(module)])
    own = {name for name in imports(module) if name.split(".")[0] in ("minicnn", "icnn")}
    assert own <= above, f"{module} imports {', '.join(sorted(own - above))}, which does not stand above it"


@pytest.mark.parametrize("module", [module for module in FILES if module.startswith("minicnn")])
def test_the_library_knows_nothing_of_faces(module):
    assert not {name for name in imports(module) if name.split(".")[0] == "icnn"}


@pytest.mark.parametrize("module", FILES)
def test_only_the_gpu_backend_names_cupy_and_nothing_names_torch(module):
    packages = {name.split(".")[0] for name in imports(module)}
    assert "torch" not in packages
    assert "cupy" not in packages or module == "minicnn.kernels.gpu"


def test_importing_everything_imports_neither_cupy_nor_torch():
    """In a process of its own; even where they are installed. The GPU backend is imported only when asked for."""
    asked_for = {"minicnn.kernels.gpu", "minicnn.kernels.gpu_im2col"}
    modules = [name for name in FILES if name not in asked_for and not name.endswith("__main__")]
    program = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
print(*(name for name in ("cupy", "torch", "matplotlib") if name in sys.modules))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == []


def test_importing_minicnn_loads_no_compiler():
    """Numba takes a second to import: only who asks for its backend waits."""
    program = "import sys, minicnn, icnn.network; print('numba' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == ["False"]
