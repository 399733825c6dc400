"""Do the exercises accept what is right, name each typical mistake, and answer bad files with one line?"""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import call, refused
from planted_bugs import BUGS

from icnn.exercise import runner
from icnn.exercise.bugs import ROOT, ROUNDS
from icnn.exercise.runner import check, judge_file
from icnn.exercise.task import OPEN, UNUSABLE, WRONG
from icnn.exercise.tasks import EXERCISES
from minicnn.gradcheck import numeric_gradient, relative_error

pytestmark = pytest.mark.slow

BY_NAME = {exercise.name: exercise for exercise in EXERCISES}
MISTAKES = [(exercise, hint) for exercise in EXERCISES for hint in exercise.mistakes]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
def test_an_exercise_fails_as_given_and_passes_with_our_solution(tmp_path, exercise):
    file = tmp_path / "file.py"
    file.write_text(exercise.template(7))
    assert judge_file(exercise, file).kind == OPEN
    file.write_text(f"import numpy as np\n\n\n{exercise.source}")
    assert judge_file(exercise, file) is None
    assert len(exercise.mistakes) >= 2 and exercise.hint.endswith(".") and exercise.about.endswith(".")


@pytest.mark.parametrize(("exercise", "hint"), MISTAKES, ids=lambda value: getattr(value, "name", None))
def test_a_typical_mistake_is_named(exercise, hint):
    def mistaken(*arguments):
        wrong, right = (exercise._tuple(f(*arguments)) for f in (exercise.mistakes[hint], exercise.solution))
        results = tuple(r if w is None else w for w, r in zip(wrong, right, strict=True))
        return results if len(results) > 1 else results[0]

    finding = exercise.judge(mistaken)
    assert finding.kind == WRONG and "expected" in finding.text and finding.text.endswith(f"; hint: {hint}")


def test_another_mistake_has_no_hint():
    """Nor has one that equals a typical mistake in some cases only."""
    mean = BY_NAME["upsample_backward"].mistakes
    for mistaken in (lambda dy: 3 * dy[:, ::2, ::2], lambda dy: next(iter(mean.values()))(dy) * (1 + (len(dy) > 1))):
        finding = BY_NAME["upsample_backward"].judge(mistaken)
        assert finding.kind == WRONG and "hint" not in finding.text


def gradient_case(name, rng):
    """A scalar function of arrays, the arrays, and their gradients as the exercise's solution has them."""
    forward, backward = (BY_NAME[f"{name}_{way}"].solution for way in ("forward", "backward"))
    if name == "conv":
        x, w, b = rng.standard_normal((2, 4, 5)), rng.standard_normal((3, 2, 3, 3)), rng.standard_normal(3)
        dy = rng.standard_normal((3, 4, 5))
        return lambda: (dy * forward(x, w, b)).sum(), (x, w, b), backward(dy, x, w)
    if name == "cross_entropy":
        z, t, weights = rng.standard_normal((3, 2, 4)), rng.integers(0, 3, (2, 4)), rng.random((2, 4))
        return lambda: forward(z, t, weights)[0], (z,), (backward(forward(z, t, weights)[1], t, weights),)
    if name == "concat":
        maps = tuple(rng.standard_normal((c, 2, 2)) for c in (1, 2, 3))
        dy = rng.standard_normal((6, 2, 2))
        return lambda: (dy * forward(*maps)).sum(), maps, backward(dy, (1, 2, 3))
    x = rng.standard_normal((2, 4, 6))
    dy = rng.standard_normal(forward(x).shape)
    gradient = backward(dy, x) if name == "max_pool" else backward(dy)
    return lambda: (dy * forward(x)).sum(), (x,), (gradient,)


@pytest.mark.parametrize("name", ["conv", "max_pool", "upsample", "concat", "cross_entropy"])
def test_our_backward_functions_have_the_numeric_gradients(name, rng):
    function, arrays, gradients = gradient_case(name, rng)
    for array, gradient in zip(arrays, gradients, strict=True):
        assert relative_error(gradient, numeric_gradient(function, array)) < 1e-8


def test_our_objective_has_its_numeric_gradient_and_is_what_the_program_maximises(rng):
    from icnn.model.modulation import SoftF

    pair, z, truth = np.array([1.3, -0.4]), rng.standard_normal((2, 4, 5)), rng.integers(0, 2, (4, 5))
    objective = BY_NAME["modulation_objective"].solution
    value, gradient = objective(pair, z, truth)
    assert relative_error(gradient, numeric_gradient(lambda: objective(pair, z, truth)[0], pair)) < 1e-8
    total = np.array([0, truth.sum()])
    soft, slope = SoftF(z[None], truth[None], np.ones((1, 4, 5), bool), total)(pair)
    np.testing.assert_allclose((-value, *-gradient), (soft, *slope), rtol=1e-12)


HEAD = "import numpy as np\ndef max_pool_forward(x):\n"
BAD_FILES = {
    "syntax": ("def max_pool_forward(x:\n    return x\n", [":1: SyntaxError"]),
    "no function": ("x = 3\n", ["expected a function max_pool_forward"]),
    "bytes": (b"\xff\xfe\x00", ["SyntaxError"]),
    "exception": (f"{HEAD}    y = x\n    return y[9]\n", [":4: IndexError", "out of bounds"]),
    "arguments": ("def max_pool_forward():\n    return 1\n", ["TypeError", "positional argument"]),
    "shape": (f"{HEAD}    return x[:, ::2]\n", [":2: y: expected shape (1, 1, 1), got (1, 1, 2)", "x (1, 2, 2)"]),
    "dtype": (f"{HEAD}    return np.zeros((len(x), x.shape[1] // 2, x.shape[2] // 2), int)\n", ["float64, got int64"]),
    "none": (f"{HEAD}    pass\n", [":2: y: expected numbers of shape (1, 1, 1), got None"]),
    "ragged": (f"{HEAD}    return [[1, 2], [3]]\n", ["expected an array of shape (1, 1, 1), got list"]),
    "complex": (f"{HEAD}    return x * 1j\n", ["expected numbers of shape (1, 1, 1), got dtype complex128"]),
    "changed input": (f"{HEAD}    x[...] = 0\n    return x\n", ["argument x was changed", "x.copy()"]),
    "exit": (f"{HEAD}    raise SystemExit(3)\n", [":3: SystemExit"]),
    "killed": (f"{HEAD}    import os\n    os._exit(3)\n", ["ended its process (exit code 3)"]),
    "recursion": (f"{HEAD}    return max_pool_forward(x)\n", [":3: RecursionError"]),
    "memory": (f"{HEAD}    return np.ones((1 << 20, 1 << 20))\n", [":3: ", "MemoryError"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_run_to_a_result_gets_one_line_and_exit_code_2(tmp_path, name):
    text, words = BAD_FILES[name]
    assert call("exercise", "--dir", tmp_path)[0] == 0
    file = tmp_path / "03_max_pool_forward.py"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused("exercise", "--dir", tmp_path, "check", 3, words=[file, *words])
    assert not (tmp_path / "progress.json").exists()


def test_results_that_are_too_few_are_counted(tmp_path):
    file = tmp_path / "file.py"
    file.write_text("def sgd_momentum(w, v, g, lr, momentum):\n    return w - lr * g\n")
    finding = judge_file(BY_NAME["sgd_momentum"], file)
    assert finding == (UNUSABLE, f"{file}:1: expected w and v, got 1 results")


def test_an_endless_loop_ends_after_the_limit_and_its_line_is_named(tmp_path):
    file = tmp_path / "Übung.py"
    file.write_text(f"{HEAD}    while True:\n        pass\n")
    finding = check(BY_NAME["max_pool_forward"], file, limit=0.5)
    assert finding.kind == UNUSABLE and "within 0.5 s" in finding.text
    file = tmp_path / "file.py"
    file.write_text(f"{HEAD}    while True:\n        pass\n")
    assert f"{file}:" in check(BY_NAME["max_pool_forward"], file, limit=0.5).text
    assert runner.LIMIT == 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_learners_code_too(tmp_path, number):
    call("exercise", "--dir", tmp_path)
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    code = f"import time\nopen({str(begun)!r}, 'w')\ntime.sleep(2)\nopen({str(ended)!r}, 'w')\n"
    (tmp_path / "01_conv_forward.py").write_text(code)
    command = [sys.executable, "-m", "icnn.exercise", "--dir", str(tmp_path), "check", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not begun.exists():
        time.sleep(0.02)
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == f"icnn.exercise: stopped by {signal.Signals(number).name}\n"
    assert process.returncode == 128 + number
    time.sleep(2)
    assert not ended.exists()


def test_a_learner_goes_from_one_exercise_to_the_next(tmp_path, capfd):
    code, out, _ = call("exercise", "--dir", tmp_path)
    first = tmp_path / "01_conv_forward.py"
    assert code == 0 and out.count(" open ") >= len(EXERCISES) and str(first) in out
    assert len(list(tmp_path.glob("*.py"))) == len(EXERCISES)
    code, out, _ = call("exercise", "--dir", tmp_path, "check")
    assert code == 1 and "still to be written" in out and "--hint 1" in out
    code, out, _ = call("exercise", "--hint", 1)
    assert code == 0 and out == f"{EXERCISES[0].hint}\n"
    code, solution, _ = call("exercise", "--solution", 1)
    capfd.readouterr()
    first.write_text(f"import numpy as np\nprint('mine')\n{solution.replace('[:, :, u, v]', '[:, :, -1 - u, -1 - v]')}")
    code, out, _ = call("exercise", "--dir", tmp_path, "check", 1)
    assert code == 1 and "you flipped the kernel" in out
    assert capfd.readouterr().out == "mine\n"
    first.write_text(f"import numpy as np\n{solution}")
    code, out, _ = call("exercise", "--dir", tmp_path, "check")
    assert code == 0 and "conv_forward: passed" in out and "02_conv_backward.py" in out
    code, out, _ = call("exercise", "--dir", tmp_path)
    assert "done" in out.splitlines()[0] and "check 2" in out
    assert first.read_text().endswith(solution), "a learner's file is never overwritten"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", 99], ["from 1 to 14", "99"]),
        (["--solution", 15], ["from 1 to 14", "15"]),
        (["--hint", 0], ["--hint", "at least 1"]),
        (["bug"], ["a round", "none"]),
        (["bug", 99], ["99"]),
        (["check", 1, "--line", 3], ["--line"]),
        (["solve"], ["solve", "check"]),
    ],
)
def test_mistakes_on_the_command_line_are_refused(tmp_path, arguments, words):
    refused("exercise", "--dir", tmp_path, *arguments, words=words)


def test_a_damaged_folder_is_refused(tmp_path):
    (tmp_path / "progress.json").write_text("7")
    refused("exercise", "--dir", tmp_path, words=["progress.json", "delete"])
    refused("exercise", "--dir", tmp_path / "progress.json", words="progress.json")


@pytest.mark.parametrize("name", ROUNDS)
def test_a_bug_is_one_of_the_planted_ones_and_its_check_fails_only_with_it(name):
    bug = ROUNDS[name]
    assert (bug.file, bug.right, bug.wrong) in {(entry.file, entry.right, entry.wrong) for entry in BUGS}
    assert (ROOT / bug.file).read_text().count(bug.right) == 1
    assert 1 <= len(bug.lines()) <= 2
    fine = list(bug.check())
    expected, got = (line.split(maxsplit=1)[1] for line in fine[1:3])
    assert "WRONG" not in "".join(fine) and ("gradient check" in fine[0] or got == expected)


def test_a_bug_whose_file_was_changed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("icnn.exercise.bugs.ROOT", tmp_path)
    file = tmp_path / "icnn" / "model" / "modulation.py"
    file.parent.mkdir(parents=True)
    file.write_text("mine\n")
    refused("exercise", "--dir", tmp_path / "mine", "bug", 3, words=[file, "beta0", "restore"])


def test_all_bugs_show_in_processes_of_their_own():
    names = list(ROUNDS)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "icnn.exercise.bugs", name], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for name in names
    ]
    for name, process in zip(names, processes, strict=True):
        out, _ = process.communicate(timeout=100)
        assert process.returncode == 0
        lines = out.splitlines()
        assert "WRONG" in out if "gradient check" in lines[0] else lines[1].split()[1:] != lines[2].split()[1:], name


def test_a_learner_finds_a_bug(tmp_path):
    code, out, _ = call("exercise", "--dir", tmp_path, "bug", 3)
    file = tmp_path / "bugs" / "03_modulation.py"
    assert code == 0 and "expected [3.5, 1.0]" in out and str(file) in out
    (line,) = [n for n, text in enumerate(file.read_text().splitlines(), 1) if "- beta0" in text]
    assert call("exercise", "--dir", tmp_path, "bug", 3, "--line", line + 1)[0] == 1
    code, out, _ = call("exercise", "--dir", tmp_path, "bug", 3, "--line", line)
    assert code == 0 and "the sign of beta0" in out
    assert json.loads((tmp_path / "progress.json").read_text()) == ["bug background"]
    assert "3 done" in call("exercise", "--dir", tmp_path)[1]


def test_a_line_that_the_file_does_not_have_is_refused(tmp_path):
    refused("exercise", "--dir", tmp_path / "mine", "bug", 1, "--line", 9999, words=["expected --line from 1", "9999"])
