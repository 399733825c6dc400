"""Do several processes draw the same faces as one, and do all end, whatever happens to one of them?"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import call
from launching import workers

from icnn.cli import Signals, StopError
from icnn.errors import InputError
from icnn.synthetic import __main__ as synthetic
from icnn.synthetic.faces import synthetic_face
from icnn.synthetic.processes import process_count, process_map

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_processes_are_started_where_they_save_time():
    assert [process_count(faces, 2) for faces in (1, 49, 50, 1000)] == [1, 1, 2, 2]
    assert process_count(1000, 1) == 1


def test_two_processes_draw_the_same_faces_in_the_same_order():
    seeds, names, numbers = [0] * 9, ["exemplars"] * 9, range(9)
    with process_map(2, Signals()) as spread:
        drawn = list(spread(synthetic_face, seeds, names, numbers))
    for face, expected in zip(drawn, map(synthetic_face, seeds, names, numbers), strict=True):
        assert face.name == expected.name
        np.testing.assert_array_equal(face.pixels, expected.pixels)


def test_the_command_writes_the_same_folder_for_any_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "process_count", lambda faces, threads: threads)
    for threads in "12":
        assert call("synthetic", "--out", tmp_path / threads, "--count", 10, "--threads", threads) == (0, "", "")
    one, two = ({path.relative_to(root): path.read_bytes() for path in root.rglob("*.*")}
                for root in (tmp_path / "1", tmp_path / "2"))  # fmt: skip
    assert one == two and len(one) == 10 * 12 + 3


def test_a_mistake_in_a_process_is_said_as_in_this_one(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "process_count", lambda faces, threads: threads)
    (tmp_path / "file").touch()
    code, _, err = call("synthetic", "--out", tmp_path / "file" / "faces", "--count", 10, "--threads", 2)
    assert code == 2 and err.count("\n") == 1 and "file" in err


# ---------------------------------------------------------------- the ends of processes


@pytest.fixture
def drawing(tmp_path):
    """A command that draws in two processes, alone in a process group, and their numbers."""
    command = [sys.executable, "-m", "icnn.synthetic", "--out", tmp_path, "--count", "100000", "--threads", "2"]
    process = subprocess.Popen(command, cwd=ROOT, process_group=0, stderr=subprocess.PIPE, text=True)
    until, drawn_by = time.monotonic() + 100, []
    while len(drawn_by) < 2 and time.monotonic() < until:
        time.sleep(0.05)
        drawn_by = [number for number in workers(process) if b"spawn_main" in words(number)]
    yield process, drawn_by
    with process:
        process.kill()


def words(number):
    """Command line of a process; empty once it has ended."""
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b""


def all_end(numbers):
    until = time.monotonic() + 60
    while any(map(words, numbers)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(words, numbers))


@pytest.mark.parametrize("seconds", [0, 3])  # while they import, and while they draw
@pytest.mark.parametrize(("number", "send"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.killpg),
                                              (signal.SIGTERM, os.kill)])  # fmt: skip
def test_a_signal_while_drawing_ends_all_with_one_line(drawing, tmp_path, number, send, seconds):
    process, drawn_by = drawing
    time.sleep(seconds)
    send(process.pid, number)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 128 + number
    assert err == f"icnn.synthetic: stopped by {signal.Signals(number).name}\n"
    assert len(drawn_by) == 2 and all_end(drawn_by)
    assert not list(tmp_path.rglob(".*")), "a face is written whole"


def test_a_killed_command_leaves_no_process(drawing):
    process, drawn_by = drawing
    process.kill()
    assert len(drawn_by) == 2 and all_end(drawn_by)


def test_a_process_that_is_killed_ends_the_command_with_one_line(drawing):
    process, drawn_by = drawing
    os.kill(drawn_by[1], signal.SIGKILL)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2 and all_end(drawn_by)
    assert err.count("\n") == 1 and "killed" in err and "--threads 1" in err


def test_a_signal_comes_before_the_death_of_the_processes():
    signals = Signals()
    with pytest.raises(InputError, match="--threads 1"), process_map(2, signals) as spread:
        list(spread(os._exit, [1, 1]))
    signals.number = signal.SIGTERM
    with pytest.raises(StopError), process_map(2, signals) as spread:
        list(spread(os._exit, [1, 1]))
