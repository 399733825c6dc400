"""``python -m icnn.exercise``: write the kernels of the network yourself, and find planted bugs."""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from icnn.cli import Parser, positive, run, text_table
from icnn.errors import InputError
from icnn.exercise.bugs import ROUNDS
from icnn.exercise.runner import LIMIT, check
from icnn.exercise.task import OPEN, UNUSABLE
from icnn.exercise.tasks import EXERCISES
from minicnn.checkpoint import atomic_path

_NOT_PASSED = 1
_COMMAND, _FOLDER = "python -m icnn.exercise", Path("icnn-exercises")

_HELP = f"""Write the kernels of the network yourself, one function at a time, and find bugs planted in the program.
Files to fill in and your progress lie in a folder of yours, which is made at the first call.

  {_COMMAND}                    list the exercises and rounds, and say what to do next
  {_COMMAND} check [N]          run your file of exercise N, or of the first open one
  {_COMMAND} --hint N           a sentence that helps to begin
  {_COMMAND} --solution N       our function
  {_COMMAND} bug N              show a check that fails since one line of a file was changed
  {_COMMAND} bug N --line L     say which line it is

A function may take {LIMIT:g} s. To begin a file anew, delete it. Exit codes: 0 passed, 1 not passed yet, 2 the code has
no result of the right shape and type, or a mistake on the command line."""


class Folder:
    """The learner's folder: a file for each exercise, `bugs/`, and `progress.json` with the names of what is done."""

    def __init__(self, path: Path):
        self.path, self._progress = path, path / "progress.json"
        self.command = _COMMAND if path == _FOLDER else f"{_COMMAND} --dir {shlex.quote(str(path))}"
        path.mkdir(parents=True, exist_ok=True)
        for number, exercise in enumerate(EXERCISES, 1):
            if not self.file(number).exists():
                self.file(number).write_text(exercise.template(number), encoding="utf-8")
        try:
            text = self._progress.read_text(encoding="utf-8") if self._progress.exists() else "[]"
            self.done = {str(name) for name in json.loads(text)}
        except (ValueError, TypeError):
            raise InputError(f"{self._progress}: expected a list of names, got something else; delete it") from None

    def file(self, number: int) -> Path:
        """Return the file of exercise `number`."""
        return self.path / f"{number:02}_{EXERCISES[number - 1].name}.py"

    def mark(self, name: str) -> None:
        """Write down that an exercise or a round is done."""
        self.done.add(name)
        with atomic_path(self._progress) as path:
            path.write_text(json.dumps(sorted(self.done)), encoding="utf-8")

    def first_open(self) -> int | None:
        """Return the number of the first exercise that is not done, if any is left."""
        return next((n for n, exercise in enumerate(EXERCISES, 1) if exercise.name not in self.done), None)


def _list(folder: Folder) -> int:
    states = ["done" if exercise.name in folder.done else "open" for exercise in EXERCISES]
    exercises = [
        (str(n), e.name, state, e.about) for n, (e, state) in enumerate(zip(EXERCISES, states, strict=True), 1)
    ]
    print(text_table(exercises, 4))
    rounds = [f"{n} {'done' if _round_name(n) in folder.done else 'open'}" for n in range(1, len(ROUNDS) + 1)]
    print(f"\nfind the bug: {', '.join(rounds)}\n")
    _say_next(folder)
    return 0


def _say_next(folder: Folder) -> None:
    number = folder.first_open()
    if number:
        print(f"next: write {folder.file(number)}, then {folder.command} check {number}")
        return
    left = [n for n in range(1, len(ROUNDS) + 1) if _round_name(n) not in folder.done]
    print(f"next: {folder.command} bug {left[0]}" if left else "everything is done")


def _check(folder: Folder, number: int) -> int:
    exercise, file = EXERCISES[number - 1], folder.file(number)
    sys.stdout.flush()
    finding = check(exercise, file)
    if finding is None:
        folder.mark(exercise.name)
        print(f"exercise {number}, {exercise.name}: passed")
        _say_next(folder)
        return 0
    if finding.kind == UNUSABLE:
        raise InputError(finding.text)
    print(finding.text)
    if finding.kind == OPEN:
        print(f"a hint: {_COMMAND} --hint {number}")
    return _NOT_PASSED


def _round_name(number: int) -> str:
    return f"bug {list(ROUNDS)[number - 1]}"


def _show_bug(folder: Folder, number: int) -> int:
    name, bug = list(ROUNDS.items())[number - 1]
    shown = folder.path / "bugs" / f"{number:02}_{Path(bug.file).name}"
    shown.parent.mkdir(exist_ok=True)
    shown.write_text(bug.planted(), encoding="utf-8")
    command = [sys.executable, "-m", "icnn.exercise.bugs", name]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    print(process.stdout, end="")
    print(f"\nOne change in {bug.file} does this: {shown} is the changed file. Which line is it?")
    print(f"{folder.command} bug {number} --line L")
    return 0


def _answer(folder: Folder, number: int, line: int) -> int:
    bug = list(ROUNDS.values())[number - 1]
    if line > (count := len(bug.planted().splitlines())):
        raise InputError(f"expected --line from 1 to {count}, the lines of {bug.file}; got {line}")
    if line not in bug.lines():
        print(f"line {line} is as it should be")
        return _NOT_PASSED
    folder.mark(_round_name(number))
    print(f"found: {bug.what}. Right is:\n\n{bug.right}\n")
    _say_next(folder)
    return 0


def _number(value: int | None, count: int, what: str) -> int:
    if value is None or value > count:
        raise InputError(f"expected the number of {what}, from 1 to {count}, got {value or 'none'}; see {_COMMAND}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = Parser(prog=_COMMAND, description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=("check", "bug"), help="default: list everything")
    parser.add_argument("number", nargs="?", type=positive, metavar="N", help="of an exercise or a round")
    parser.add_argument("--line", type=positive, metavar="L", help="with bug N: the changed line")
    parser.add_argument("--hint", type=positive, metavar="N", help="a hint for an exercise")
    parser.add_argument("--solution", type=positive, metavar="N", help="our function of an exercise")
    parser.add_argument(
        "--dir", type=Path, default=_FOLDER, metavar="DIR", help="your folder (default: ./icnn-exercises)"
    )
    options = parser.parse_args(argv)
    if options.line and options.action != "bug":
        parser.error("argument --line: expected bug N before it")
    if options.hint:
        print(EXERCISES[_number(options.hint, len(EXERCISES), "an exercise") - 1].hint)
        return 0
    if options.solution:
        print(EXERCISES[_number(options.solution, len(EXERCISES), "an exercise") - 1].source, end="")
        return 0
    if options.action == "bug":
        number = _number(options.number, len(ROUNDS), "a round")
        folder = Folder(options.dir)
        return _answer(folder, number, options.line) if options.line else _show_bug(folder, number)
    folder = Folder(options.dir)
    if options.action is None:
        return _list(folder)
    number = options.number or folder.first_open() or 1
    return _check(folder, _number(number, len(EXERCISES), "an exercise"))


if __name__ == "__main__":
    run(main, "icnn.exercise")
