"""Run a learner's file in a process of its own, which ends after a time limit.

``python -m icnn.exercise.runner NAME FILE RESULT`` judges the function NAME of FILE and writes a `Finding` as JSON.
"""

import faulthandler
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

from icnn.cli import Signals, limit_memory
from icnn.errors import InputError
from icnn.exercise.task import OPEN, UNUSABLE, Exercise, Finding
from icnn.exercise.tasks import EXERCISES

#: Seconds that a learner's function may take.
LIMIT = 20.0
_START = 20.0  # seconds that the process may take besides, to start
_MEMORY = 4 << 30  # bytes


def check(exercise: Exercise, file: Path, limit: float = LIMIT) -> Finding | None:
    """Judge the function in `file`; None if it passes. What it prints goes to stdout.

    A finding that the learner's code cannot be run to a result is UNUSABLE and begins with FILE:LINE.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, stack = Path(folder, "result.json"), Path(folder, "stack.txt")
        command = [sys.executable, "-m", "icnn.exercise.runner", exercise.name, str(file), str(result), str(limit)]
        deadline = time.monotonic() + limit + _START
        # A session of its own: signals reach this process, which ends that one.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True)
        with Signals() as signals:
            try:
                while (running := process.poll() is None) and time.monotonic() < deadline:
                    signals.check()
                    time.sleep(0.02)
            finally:
                process.kill()
                process.wait()
        if result.exists():
            found = json.loads(result.read_text(encoding="utf-8"))
            return Finding(*found) if found else None
        trace = stack.read_text(errors="replace") if stack.exists() else ""
    if trace or running:
        found = re.search(rf'{re.escape(file.name)}", line (\d+)', trace)  # the first is the innermost
        where = f"{file}:{found[1]}" if found else str(file)
        return Finding(UNUSABLE, f"{where}: expected a result within {limit:g} s, got none; is there an endless loop?")
    code = process.returncode
    return Finding(UNUSABLE, f"{file}: expected a result, but the code ended its process (exit code {code})")


def judge_file(exercise: Exercise, file: Path) -> Finding | None:
    """Load a learner's file and judge its function, in this process."""
    names: dict = {"__name__": "exercise", "__file__": str(file)}
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), names)
    except SyntaxError as error:
        return Finding(UNUSABLE, f"{file}:{error.lineno or 1}: SyntaxError: {error.msg}")
    except BaseException as error:
        return _failed(error, file)
    function = names.get(exercise.name)
    if not callable(function):
        return Finding(UNUSABLE, f"{file}: expected a function {exercise.name}, found none; try to name it so again")
    try:
        finding = exercise.judge(function)
    except NotImplementedError:
        return Finding(OPEN, f"{file}: still to be written")
    except BaseException as error:
        return _failed(error, file)
    if finding is None:
        return None
    line = function.__code__.co_firstlineno if hasattr(function, "__code__") else 1
    return finding._replace(text=f"{file}:{line}: {finding.text}")


def _failed(error: BaseException, file: Path) -> Finding:
    """Describe an exception by its type and text, and by the innermost line of the learner's file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    where = f"{file}:{lines[-1]}" if lines else str(file)
    return Finding(UNUSABLE, f"{where}: {type(error).__name__}: {' '.join(str(error).split()) or 'no message'}")


def main(name: str, file: str, result: str, limit: str) -> None:
    """Judge one file; faulthandler says on a timeout where the code was, and ends the process."""
    with suppress(InputError):  # not every system can
        limit_memory(_MEMORY)
    with Path(result).with_name("stack.txt").open("w") as stack:
        faulthandler.dump_traceback_later(float(limit), exit=True, file=stack)
        finding = judge_file(next(exercise for exercise in EXERCISES if exercise.name == name), Path(file))
        faulthandler.cancel_dump_traceback_later()
    Path(result).write_text(json.dumps(finding), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # whatever threads the code has started


if __name__ == "__main__":
    main(*sys.argv[1:])
