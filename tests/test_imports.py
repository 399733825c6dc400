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
    "minicnn.kernels.signatures", "minicnn.kernels.validation", "minicnn.kernels.backend", "minicnn.kernels",
    "minicnn.kernels.host", "minicnn.kernels.reference",
    "minicnn.kernels.cpu", "minicnn.kernels.cpu.vectors", "minicnn.kernels.cpu.store",
    "minicnn.kernels.cpu.compiled", "minicnn.kernels.cpu.compiled.options", "minicnn.kernels.cpu.compiled.compiler",
    "minicnn.kernels.cpu.processes", "minicnn.kernels.cpu.loading", "minicnn.kernels.cpu.threads",
    "minicnn.kernels.cpu.compiled.share", "minicnn.kernels.cpu.kernel",
    "minicnn.kernels.cpu.layout", "minicnn.kernels.cpu.winograd_blocks",
    "minicnn.kernels.cpu.conv_direct", "minicnn.kernels.cpu.conv_weights", "minicnn.kernels.cpu.conv_winograd",
    "minicnn.kernels.cpu.conv", "minicnn.kernels.cpu.pool", "minicnn.kernels.cpu.loss", "minicnn.kernels.cpu.backend",
    "minicnn.kernels.cpu.compiled.vecmath", "minicnn.kernels.cpu.compiled.tiles",
    "minicnn.kernels.cpu.compiled.winograd_tiles", "minicnn.kernels.cpu.compiled.winograd_products",
    "minicnn.kernels.cpu.compiled.conv_direct", "minicnn.kernels.cpu.compiled.conv_weights",
    "minicnn.kernels.cpu.compiled.conv_winograd", "minicnn.kernels.cpu.compiled.pool",
    "minicnn.kernels.cpu.compiled.loss",
    "minicnn.kernels.cuda", "minicnn.kernels.cuda.sources", "minicnn.kernels.cuda.tiles", "minicnn.kernels.cuda.device",
    "minicnn.kernels.cuda.backend", "minicnn.kernels.cuda.cublas",
    "minicnn.layers",
    "minicnn.graph",
    "minicnn.planner", "minicnn.arrays", "minicnn.parameters", "minicnn.loss", "minicnn.sgd", "minicnn.passes",
    "minicnn.checkpoint",
    "minicnn.plan",
    "minicnn.distributed",
    "minicnn.gradcheck",
    "minicnn",
    "icnn.errors", "icnn.classes", "icnn.stages", "icnn.config", "icnn.cli",
    "icnn.data", "icnn.data.images", "icnn.data.geometry", "icnn.data.loops", "icnn.data.resample", "icnn.data.pyramid",
    "icnn.data.face_box",
    "icnn.data.folder", "icnn.data.write_folder", "icnn.data.overlay", "icnn.data.augment", "icnn.data.photometric",
    "icnn.model", "icnn.model.network", "icnn.model.centres", "icnn.model.patches", "icnn.model.modulation",
    "icnn.model.face_maps", "icnn.model.weights", "icnn.model.pipeline", "icnn.model.finder",
    "icnn.synthetic", "icnn.synthetic.shapes", "icnn.synthetic.canvas", "icnn.synthetic.surroundings",
    "icnn.synthetic.faces", "icnn.synthetic.processes",
    "icnn.evaluate", "icnn.evaluate.metrics", "icnn.evaluate.baselines", "icnn.evaluate.scoring",
    "icnn.report", "icnn.report.formats", "icnn.report.charts", "icnn.report.render", "icnn.report.page",
    "icnn.report.showcase",
    "icnn.train", "icnn.train.batches", "icnn.train.run_folder", "icnn.train.splits", "icnn.train.live",
    "icnn.train.events", "icnn.train.trainer", "icnn.train.scenes", "icnn.train.finder",
    "icnn.parse", "icnn.parse.search", "icnn.parse.finder", "icnn.parse.results", "icnn.parse.parser",
    "icnn.parse.files",
    "icnn.convert", "icnn.convert.contours", "icnn.convert.formats",
    "icnn.export", "icnn.export.writer",
    "icnn.exercise", "icnn.exercise.task", "icnn.exercise.tasks.convolution", "icnn.exercise.tasks.layers",
    "icnn.exercise.tasks.training", "icnn.exercise.tasks.faces", "icnn.exercise.tasks", "icnn.exercise.runner",
    "icnn.exercise.bugs",
    "icnn.serve", "icnn.serve.app",
    "icnn.synthetic.__main__", "icnn.convert.__main__", "icnn.train.__main__", "icnn.evaluate.__main__",
    "icnn.report.__main__", "icnn.parse.__main__", "icnn.export.__main__", "icnn.serve.__main__",
    "icnn.exercise.__main__",
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
    assert {"minicnn", "minicnn.kernels.cpu.backend", "icnn.model.network"} <= set(FILES)
    assert {"minicnn.kernels.cpu.conv", "collections.abc"} <= imports("minicnn.kernels.cpu.backend")


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_what_stands_above_it(module):
    assert module in ORDER, f"{module} is new: give it a place in ORDER of {Path(__file__).name}"
    above = set(ORDER[: ORDER.index(module)])
    own = {name for name in imports(module) if name.split(".")[0] in ("minicnn", "icnn")}
    assert own <= above, f"{module} imports {', '.join(sorted(own - above))}, which does not stand above it"


@pytest.mark.parametrize("module", [module for module in FILES if module.startswith("minicnn")])
def test_the_library_knows_nothing_of_faces(module):
    assert not {name for name in imports(module) if name.split(".")[0] == "icnn"}


COMMANDS = {"synthetic", "evaluate", "report", "train", "parse", "convert", "export", "serve", "exercise"}


@pytest.mark.parametrize("module", [module for module in FILES if module.startswith(("icnn.data", "icnn.model"))])
def test_what_commands_share_knows_no_command(module):
    assert not {name for name in imports(module) if name.startswith("icnn.") and name.split(".")[1] in COMMANDS}


def test_few_modules_lie_outside_of_the_rooms():
    assert len([name for name, path in FILES.items() if path.parent == ROOT / "icnn"]) <= 10


@pytest.mark.parametrize("module", FILES)
def test_only_the_gpu_backend_names_cupy_and_nothing_names_torch(module):
    packages = {name.split(".")[0] for name in imports(module)}
    assert "torch" not in packages
    assert "cupy" not in packages or module == "minicnn.kernels.cuda.device"


def test_importing_everything_imports_neither_cupy_nor_torch():
    """In a process of its own; even where they are installed. The GPU backend is imported only when asked for."""
    asked_for = {f"minicnn.kernels.cuda.{name}" for name in ("device", "backend", "cublas")}
    modules = [name for name in FILES if name not in asked_for and not name.endswith("__main__")]
    program = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
print(*(name for name in ("cupy", "torch", "matplotlib", "jinja2") if name in sys.modules))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == []


def test_importing_minicnn_loads_no_compiler():
    """Numba takes a second to import: only who asks for its backend waits."""
    program = "import sys, minicnn, icnn.model.network; print('numba' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == ["False"]


def test_importing_the_parser_loads_nothing_that_only_other_commands_need():
    """Not Numba either, which takes half a second: the first resampling and the "numba" backend import it."""
    program = """
import sys, icnn
assert "numpy" not in sys.modules
import icnn.parse.__main__
from icnn import FaceParser
names = "numba", "scipy", "cv2", "flask", "waitress", "tqdm", "tomli_w"
print(*(name for name in names if name in sys.modules))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == []


def test_parsing_works_without_the_packages_of_the_reports(tmp_path):
    """In a process that cannot import them; the command by its entry point, FaceParser from Python."""
    program = """
import sys
sys.modules.update(dict.fromkeys(("jinja2", "markupsafe", "matplotlib")))  # None: cannot be imported
import numpy as np
from PIL import Image
from icnn import FaceParser
from icnn.__main__ import main
image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
FaceParser(backend="numpy").parse(image, [(20, 20, 56, 56)])
Image.fromarray(image).save("face.png")
sys.argv = ["icnn", "parse", "face.png", "--face", "20,20,56,56", "--backend", "numpy", "--out", "parsed"]
main()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "parsed" / "face.json").is_file()
