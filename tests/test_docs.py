"""Does the code on the pages run and print what they show, do notebooks run, and are figures those of this code?

In a page, the Python blocks run in order, and a block of text right behind one holds all that it prints. Console blocks
run, with what they print; of shell blocks, which stand for the reader's own files, the options are looked up; blocks of
CUDA are those of the study kernels.
"""

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NUMBER = re.compile(r"-?\b\d+\.\d+\b")
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def run_python(example):
    """Run a block, and keep what it prints for the block of text that must follow."""
    assert not example.namespace.get("printed"), f"line {example.line}: what the block above prints is not shown"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        PythonEvaluator()(example)
    example.namespace["printed"] = printed.getvalue()


def compare(example):
    """Compare a block of text with what the Python block above it printed.

    The last digit of a number with a decimal point may differ by one: other CPUs add in another order.
    """
    printed, shown = example.namespace.pop("printed", "").rstrip(), example.parsed.rstrip()
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown), f"line {example.line}:\n{printed}"
    for one, other in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        unit = 0.1 ** len(other.partition(".")[2])
        assert abs(float(one) - float(other)) < 1.01 * unit, f"line {example.line}: {one}, and not {other}"


def run_console(example):
    """Run the lines that begin with $, and compare what they print."""
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n?)*)", example.parsed, re.MULTILINE):
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env, timeout=120)
        assert done.returncode == 0, f"line {example.line}: {done.stderr}"
        assert done.stdout.rstrip() == expected.rstrip(), f"line {example.line}"


def look_up(example):
    """Look up the options that shell lines give to commands."""
    for module, arguments in re.findall(r"python -m (icnn\.[\w.]+)(.*)", example.parsed):
        command = importlib.import_module(f"{module}.__main__" if module.count(".") == 1 else module)
        with contextlib.redirect_stdout(io.StringIO()) as text, pytest.raises(SystemExit):
            command.main(["--help"])
        for option in re.findall(r"(?<= )--\w+", arguments.partition("#")[0]):
            assert option in text.getvalue(), f"line {example.line}: {module} has no {option}"


def find_kernel(example):
    """Find a block of CUDA in the study kernels, which have tests of their own."""
    kernels = (ROOT / "docs" / "kernels").glob("*.cu")
    assert any(example.parsed in kernel.read_text() for kernel in kernels), f"line {example.line}"


SYBIL = Sybil(
    [
        CodeBlockParser("python", run_python),
        CodeBlockParser("text", compare),
        CodeBlockParser("console", run_console),
        CodeBlockParser("sh", look_up),
        CodeBlockParser("cuda", find_kernel),
    ]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_runs_as_it_is_shown(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = SYBIL.parse(page)
    for example in document.examples():
        example.evaluate()
    assert not document.namespace.get("printed"), "what the last block prints is not shown"


@pytest.mark.slow
def test_figures_are_those_that_the_code_draws():
    done = subprocess.run([sys.executable, ROOT / "docs" / "figures.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_has_no_outputs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
