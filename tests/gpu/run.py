"""``python tests/gpu/run.py``: check and measure this project on an NVIDIA GPU; two files to send back.

    --smoke   two minutes: kernels compile and compute, a captured step is an eager one, one step beside PyTorch
              ten minutes: that, accuracy, training curves, every step and convolution beside PyTorch, traces, counters
    --tests   ten minutes: the whole of tests/gpu, racecheck, synccheck, initcheck

Needs a driver, CuPy, NumPy, SciPy, Numba, Pillow, safetensors, tqdm, pytest and hypothesis, and no network. PyTorch,
nvidia-smi, ncu and compute-sanitizer are used where they are; what is missing is said in the result. Each part is a
process of its own, so that one that crashes or hangs costs the others nothing, and its result is written at once. The
files hold no name of the machine or of its user.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(path) for path in (ROOT, ROOT / "benchmarks", ROOT / "tests", ROOT / "tests" / "hostcuda")]

import correctness  # noqa: E402
import speed  # noqa: E402
import tools  # noqa: E402
from part import Part  # noqa: E402
from report import as_markdown  # noqa: E402

from icnn.cli import Parser, run  # noqa: E402
from minicnn.checkpoint import atomic_path  # noqa: E402
from minicnn.kernels import BackendError  # noqa: E402

STARTED = 2.0  # s that a part's process takes until it begins; with less none is started
LEAST = 3.0  # s that are kept for the last part
WRITING = 1.0  # s for the files in the end


class Task(NamedTuple):
    """A part, the seconds that it takes on a large card, and what does it."""

    seconds: float
    do: Callable[[Part], None]


#: Every part, in the order of its value.
TASKS = {
    "machine": Task(10, tools.about_machine),
    "compile": Task(30, correctness.compilation),
    "kernels": Task(30, correctness.kernel_cases),
    "graphs": Task(30, correctness.graphs),
    "one step": Task(40, speed.one_step),
    "accuracy": Task(30, correctness.accuracy),
    "curves": Task(40, correctness.curves),
    "own steps": Task(60, speed.own_steps),
    "torch steps": Task(140, speed.torch_steps),
    "trace": Task(20, speed.trace),
    "ceilings": Task(5, speed.ceilings),
    "convolutions": Task(60, tools.convolutions),
    "counters": Task(60, tools.counters),
    "memcheck": Task(35, tools.memcheck),
    "tests": Task(300, tools.library_tests),
    "sanitizers": Task(180, tools.more_sanitizers),
    "clocks after": Task(5, tools.clocks),
}
_ENDS = ("machine", "clocks after")
_SMOKE = ("compile", "kernels", "graphs", "one step")
_LONG = ("tests", "sanitizers")
_FULL = [name for name in TASKS if name not in (*_ENDS, *_LONG, "one step")]
_MINUTES = {"smoke": 2.0, "tests": 10.0, "full": 10.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all is as it should be, 1 if not, 2 if no GPU can be used or the time is too short."""
    text, _, rest = (__doc__ or "").partition("\n\n")
    parser = Parser(prog="python tests/gpu/run.py", description=text, epilog=rest)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--smoke", action="store_true", help="two minutes: does it work at all, and how fast?")
    kinds.add_argument("--tests", action="store_true", help="the whole of tests/gpu, and the slow sanitizers")
    kinds.add_argument("--only", choices=TASKS, nargs="+", metavar="PART", help=f"of: {', '.join(TASKS)}")
    parser.add_argument("--minutes", type=_positive, metavar="N", help="deadline, which is kept (default: 10, smoke 2)")
    parser.add_argument(
        "--out", type=_stem, default=Path("gpu-report"), metavar="STEM",
        help="writes STEM.json and STEM.md (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--part", nargs=3, help=SUPPRESS)  # a part's own process: its name, end and file
    options = parser.parse_args(argv)
    if options.part:
        name, end, file = options.part
        return _do(name, Part(Path(file), float(end)))
    kind = "smoke" if options.smoke else "tests" if options.tests else "full"
    wanted = options.only or [_ENDS[0], *{"smoke": _SMOKE, "tests": _LONG, "full": _FULL}[kind], _ENDS[1]]
    return Report(options.out, 60 * (options.minutes or _MINUTES[kind])).make(wanted)


def _do(name: str, part: Part) -> int:
    part.put()
    try:
        TASKS[name].do(part)
    except BackendError as error:  # mostly too little memory: another process has it
        part.lack(str(error))
    part.put(finished=True)
    return 0


class Report:
    """The two files, rewritten after each part.

    Parameters
    ----------
    stem : path
        Of their names.
    seconds : float
        Until the last one must be written.
    """

    def __init__(self, stem: Path, seconds: float):
        self._stem, self._end = stem, time.monotonic() + seconds
        self._parts: dict[str, dict[str, Any]] = {}

    def make(self, names: Sequence[str]) -> int:
        """Do the parts in turn; each may take its share of the time that is left."""
        unusable = ""
        for number, name in enumerate(names):
            seconds = self._share(names[number:])
            if unusable:
                result = {"status": "left out", "why": unusable}
            elif seconds < STARTED:
                result = {"status": "left out", "why": f"it takes {TASKS[name].seconds:.0f} s, which were not left"}
            else:
                result = start_part(name, seconds)
            unusable = unusable or result.get("unusable", "")
            self._parts[name] = result
            self._write()
            _print_line(name, result)
        print(f"{self._stem}.json and {self._stem}.md are the files to send back")
        if unusable:
            print(f"run.py: {unusable}", file=sys.stderr)
            return 2
        if all(part["status"] == "left out" for part in self._parts.values()):
            print("run.py: --minutes: too short for any part; try 2 or more", file=sys.stderr)
            return 2
        return int(any(part["status"] in ("wrong", "failed") for part in self._parts.values()))

    def _share(self, names: Sequence[str]) -> float:
        """Seconds that the first of these parts may take: what it needs or half more than its share, if it is there.

        So a short deadline costs the last parts, which are worth least; but the very last always has its time.
        """
        left = self._end - time.monotonic() - WRITING - (LEAST if len(names) > 1 else 0)
        share = left * TASKS[names[0]].seconds / sum(TASKS[name].seconds for name in names)
        return min(max(1.5 * share, TASKS[names[0]].seconds), left)

    def _write(self) -> None:
        texts = {"json": json.dumps(self._parts, indent=1) + "\n", "md": as_markdown(self._parts)}
        for suffix, text in texts.items():
            with atomic_path(self._stem.with_name(f"{self._stem.name}.{suffix}")) as temporary:
                temporary.write_text(text, encoding="utf-8")


def start_part(name: str, seconds: float) -> dict[str, Any]:
    """Do a part in a process of its own, which is killed with all it has started when its time is over."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder, "part.json"), Path(folder, "log")
        end = start + seconds - WRITING  # so that it can end by itself
        command = [sys.executable, str(HERE / "run.py"), "--part", name, str(end), str(file)]
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _kill(process)
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        text = tools.anonymous(log.read_text(encoding="utf-8", errors="replace"))[-tools.KEPT :]
    finished = found.pop("finished", False)
    status = "cut off" if code is None else "failed" if not finished else "wrong" if found["wrong"] else "good"
    result = {"status": status, "seconds": round(time.monotonic() - start, 1), **found}
    return result | ({"exit": code, "output": text} if status == "failed" else {})


def _kill(process: subprocess.Popen) -> None:
    """End a process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _print_line(name: str, result: dict[str, Any]) -> None:
    notes = [*result.get("wrong", []), *result.get("lacking", []), *([result["why"]] if "why" in result else [])]
    if result["status"] == "failed":
        notes.append((result["output"].splitlines() or ["no output"])[-1])
    seconds = f" ({result['seconds']:.0f} s)" if "seconds" in result else ""
    print("; ".join([f"{name}: {result['status']}{seconds}", *notes]), flush=True)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"expected a number of minutes above 0, got {text!r}")
    return number


def _stem(text: str) -> Path:
    path = Path(text)
    if not path.name or not path.parent.is_dir():
        raise ArgumentTypeError(f"expected a file's name in a folder that exists, got {text!r}")
    return path


if __name__ == "__main__":
    run(main, "run.py")
