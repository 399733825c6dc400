"""Which mistakes in the CUDA kernels would the tests miss? ``python tests/hostcuda/mutation/mutate.py``

Fixed operators change every place that they fit, one place at a time, in every kernel; the cases of `kernel_cases` run
on each mutant, in a process of its own. Whoever survives is listed. Survivors that compute the same, or that only
a slower launch would show, are explained in `survivors.toml`. Exit code 1 if less than 95 % of what compiles is
killed, or if a survivor is not explained.
"""

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
HOSTCUDA, ROOT = HERE.parent, HERE.parents[2]
KERNELS = ROOT / "minicnn" / "kernels" / "cuda"
FILES = ("common.cuh", "conv.cu", "conv_weights.cu", "pool.cu", "loss.cu", "im2col.cu")
LEAST = 0.95
SECONDS = 120  # of one mutant's cases
KILLED, SURVIVED, STILLBORN = "killed", "survived", "stillborn"


class Mutant(NamedTuple):
    """One change to one line."""

    file: str
    line: int
    operator: str
    before: str
    after: str

    def text(self) -> str:
        """The whole file with the change."""
        lines = (KERNELS / self.file).read_text(encoding="utf-8").splitlines(keepends=True)
        lines[self.line - 1] = lines[self.line - 1].replace(self.before, self.after, 1)
        return "".join(lines)


#: Operator, pattern, replacement. Each match is a mutant of its own; a comment behind the code does not count.
_SWAPS = [
    ("comparison", r" < ", " <= "),
    ("comparison", r" <= ", " < "),
    ("comparison", r" > ", " >= "),
    ("comparison", r" >= ", " > "),
    ("comparison", r" == ", " != "),
    ("comparison", r" != ", " == "),
    ("logic", r" && ", " || "),
    ("logic", r" \|\| ", " && "),
    ("sign", r" \+ ", " - "),
    ("sign", r" - ", " + "),
    ("sign", r" \+= ", " -= "),
    ("factor", r" \* ", " / "),
    ("factor", r" / ", " * "),
    ("factor", r" % ", " / "),
    ("barrier", r"__syncthreads\(\);", ";"),
    ("atomics", r"atomicAdd\(([^,]+), ([^)]+)\)", r"(*(\1) += \2)"),
    ("constant", r"(?<![\w.])\d+(?![\w.])", "+1"),
    ("index", r"(?<=\w)\[([^\[\]]+)\]", r"[\1 + 1]"),
    ("bound", r"; (\w+) < ([^;]+); ", r"; \1 < \2 - 1; "),
    ("bound", r"; (\w+) > ([^;]+); ", r"; \1 > \2 + 1; "),
]
#: Lines of declarations only: what they say is a type or a size, which the compiler or the launch would refuse.
_LEFT_OUT = re.compile(r"^\s*(//|#|template|typedef|struct|enum|static_assert|__global__|constexpr Index)|^$")
_ARRAYS = re.compile(r"^\s*(const )?(T|int|Index|Tap|bool) \w+(\[[^\]]+\])+;")


def mutants_of(file: str) -> Iterator[Mutant]:
    """All mutants of a file, from its first line to its last."""
    for number, line in enumerate((KERNELS / file).read_text(encoding="utf-8").splitlines(), 1):
        code = line.partition("//")[0]
        if _LEFT_OUT.search(code) or _ARRAYS.search(code):
            continue
        seen = {line}
        for operator, pattern, replacement in _SWAPS:
            for match in re.finditer(pattern, code):
                new = str(int(match[0]) + 1) if operator == "constant" else match.expand(replacement)
                changed = code[: match.start()] + new + code[match.end() :]
                if changed not in seen:
                    seen.add(changed)
                    yield Mutant(file, number, operator, code, changed)
        for start, end in _conditions(code):
            for value in ("true", "false"):
                yield Mutant(file, number, "guard", code, f"{code[:start]}{value}{code[end:]}")


def _conditions(code: str) -> Iterator[tuple[int, int]]:
    """Where the conditions of ``if (...)`` begin and end; those of templates are the compiler's."""
    for match in re.finditer(r"\bif \(", code):
        depth = 1
        for end in range(match.end(), len(code)):
            depth += {"(": 1, ")": -1}.get(code[end], 0)
            if not depth:
                yield match.end(), end
                break


# ---- running


def prepare() -> None:
    """Import what the mutants need, with the stand-in for CuPy in place, and see that nothing fails unchanged."""
    places = (HOSTCUDA, HOSTCUDA / "checker", HOSTCUDA / "fake_cupy", HOSTCUDA.parent, ROOT)
    sys.path[:0] = [str(place) for place in places]
    import standin

    sys.modules["cupy"] = standin.cupy
    from kernel_cases import run_cases

    for file in FILES:
        run_cases(file, (KERNELS / file).read_text(encoding="utf-8"))


def judge(mutant: Mutant) -> str:
    """Run a mutant's cases in a child process."""
    child = os.fork()
    if not child:
        os._exit(_try(mutant))
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return {0: SURVIVED, 3: STILLBORN}.get(os.waitstatus_to_exitcode(status), KILLED)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return KILLED


def _try(mutant: Mutant) -> int:
    """In the child: the exit code says how it went; whatever kills the process kills the mutant."""
    import standin
    from kernel_cases import run_cases

    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    try:
        run_cases(mutant.file, mutant.text())
        standin.finish()
    except standin.CompileException:
        return 3
    except BaseException:
        return 1
    return 0


def explanations() -> dict[tuple[str, str, str], str]:
    """(file, line before, line after) -> why this mutant cannot be killed."""
    with (HERE / "survivors.toml").open("rb") as file:
        entries = tomllib.load(file).get("survivor", [])
    return {(entry["file"], entry["before"].strip(), entry["after"].strip()): entry["reason"] for entry in entries}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python tests/hostcuda/mutation/mutate.py", description=__doc__.partition("``")[0]
    )
    parser.add_argument("--file", choices=FILES, help="only this one")
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every mutant and its fate")
    options = parser.parse_args(argv)

    os.environ.setdefault("ICNN_HOSTCUDA_SECONDS", "10")
    os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")  # tbb warns at every fork
    with tempfile.TemporaryDirectory() as cache:  # thousands of libraries that nobody needs again
        os.environ["ICNN_HOSTCUDA_CACHE"] = cache
        prepare()
        mutants = [mutant for file in FILES if options.file in (None, file) for mutant in mutants_of(file)]
        if options.sample is not None:
            chosen = random.Random(options.seed).sample(range(len(mutants)), min(options.sample, len(mutants)))
            mutants = [mutants[i] for i in sorted(chosen)]
        with ThreadPoolExecutor(options.jobs) as pool:
            fates = list(pool.map(judge, mutants))
    if options.json:
        rows = [mutant._asdict() | {"fate": fate} for mutant, fate in zip(mutants, fates, strict=True)]
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return report(mutants, fates)


def report(mutants: Sequence[Mutant], fates: Sequence[str]) -> int:
    """Print the survivors and the shares; returns the exit code."""
    known, unexplained = explanations(), 0
    for mutant, fate in zip(mutants, fates, strict=True):
        if fate == SURVIVED:
            reason = known.get((mutant.file, mutant.before.strip(), mutant.after.strip()))
            unexplained += reason is None
            print(f"{mutant.file}:{mutant.line}: {mutant.operator} survived: {reason or 'NOT EXPLAINED'}")
            print(f"    {mutant.before.strip()}\n    {mutant.after.strip()}")
    total = Counter()
    for operator in dict.fromkeys(mutant.operator for mutant in mutants):
        counts = Counter(fate for mutant, fate in zip(mutants, fates, strict=True) if mutant.operator == operator)
        total += counts
        print(
            f"{operator:10} {counts[KILLED]:4} killed, {counts[SURVIVED]:3} survived, {counts[STILLBORN]:3} stillborn"
        )
    compiled = total[KILLED] + total[SURVIVED]
    share = total[KILLED] / compiled if compiled else 1.0
    print(f"{compiled} mutants that compile: {share:.1%} killed; {unexplained} survivors are not explained")
    return int(share < LEAST or unexplained > 0)


if __name__ == "__main__":
    sys.exit(main())
