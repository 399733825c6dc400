"""Programs that an MPI launcher starts together."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHER = Path(sys.executable).parent / "mpiexec"  # of the package mpich, which is among the test dependencies


def launched(*commands, **options):
    """An mpiexec of processes, one a command."""
    if not LAUNCHER.exists():
        pytest.skip("needs mpiexec (pip install mpich)")
    pytest.importorskip("mpi4py")
    words = [str(LAUNCHER)]
    for command in commands:
        words += [*([":"] if len(words) > 1 else []), "-n", "1", *map(str, command)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finished(process):
    """Its exit code, output and errors; one that does not end is killed with all that it has started."""
    try:
        output, errors = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        for number in (*workers(process), process.pid):  # else they would turn in circles for ever
            os.kill(number, signal.SIGKILL)
        raise
    return process.returncode, output, errors


def workers(process):
    """Numbers of the Python processes below a launcher."""
    found, left = [], [process.pid]
    while left:
        parent = left.pop()
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        left += map(int, children)
        found += [int(child) for child in children]
    python = os.fsencode(sys.executable)
    return [number for number in found if Path(f"/proc/{number}/cmdline").read_bytes().startswith(python)]
