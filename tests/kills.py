"""Kill small trainings at random instants, go on with each until it is done, and compare with one left in peace.

    python tests/kills.py --kills 1000

A SIGKILL leaves no time to tidy up, so what is on the disk is what was safe at any instant. After each kill every file
must be whole and no checkpoint lost; in the end all that is left must be as after the undisturbed one, bit for bit.
Trainings are forks of this process: modules are loaded once, and most of an attempt is what is to be killed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from PIL import Image

from icnn.cli import run
from icnn.config import load_config
from icnn.stages import NETWORKS
from icnn.train.__main__ import main as train
from icnn.train.run_folder import Run
from minicnn.checkpoint import load_tensors

#: As small as a training can be that goes through everything; half of its time is spent on writing.
SETTINGS = [
    "synthetic.exemplars=3", "synthetic.tuning=2", "synthetic.testing=1", "train.batch=2", "train.steps=3",
    "train.validate_every=1", "train.ema=0.9", "nose.train.patience=1",
]  # fmt: skip


def launch(folder: Path, backend: str, output: Path) -> int:
    """Begin a training, or go on with it where there is one; the number of its process."""
    begun = (folder / "config.toml").exists()
    arguments = ["--resume", str(folder)] if begun else ["--out", str(folder)]
    for setting in () if begun else SETTINGS:
        arguments += ["--set", setting]
    if process := os.fork():
        return process
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        run(train, "icnn.train", [*arguments, "--backend", backend, "--threads", "1"])
    except SystemExit as stop:
        sys.stdout.flush()
        os._exit(int(stop.code or 0))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(99)


def wait(process: int, seconds: float | None = None) -> bool:
    """Let a training run to its end, or kill it after so long; whether it came to its end.

    Raises
    ------
    RuntimeError
        If it failed by itself.
    """
    until = None if seconds is None else time.monotonic() + seconds
    while until is not None and time.monotonic() < until:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            break
        time.sleep(0.0005)
    else:
        if until is not None:
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and seconds is not None:
        return False
    if status:
        raise RuntimeError(f"a training ended with status {status} by itself")
    return True


def steps_saved(folder: Path) -> dict[str, int]:
    """Steps of each network's checkpoint; reads every file there is, and fails where one is not whole."""
    if (folder / "config.toml").exists():
        load_config(folder / "config.toml")
    the_run = Run(folder)
    states = {name: the_run.load_state(name) for name in NETWORKS}
    for path in (folder / "weights").glob("[!.]*"):
        load_tensors(path)
    for path in folder.glob("[!.]*.json"):
        json.loads(path.read_text())
    for path in (folder / "validation").glob("[!.]*"):
        with Image.open(path) as image:
            image.load()
    if (page := folder / "report.html").exists():
        assert page.read_text("utf-8").rstrip().endswith("</html>"), page
    return {name: state[1].step for name, state in states.items() if state is not None}


def results(folder: Path) -> dict[str, object]:
    """All that a training leaves behind, but for the times."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".lock")
    found: dict[str, object] = {"files": left, "log": [{**entry, "images_per_second": 0} for entry in log]}
    for name in ("evaluation.json", "details.json"):
        found[name] = json.loads((folder / name).read_text())
    for name in NETWORKS:
        tensors, metadata = load_tensors(folder / "weights" / f"{name}.safetensors")
        found[name] = {key: tensor.tobytes() for key, tensor in tensors.items()}, metadata
    for path in sorted((folder / "validation").iterdir()):
        found[path.name] = path.read_bytes()
    return found


def compare(expected: dict[str, object], got: dict[str, object], folder: Path) -> None:
    """Raise RuntimeError naming what differs."""
    wrong = [key for key in expected | got if expected.get(key) != got.get(key)]
    if wrong:
        raise RuntimeError(f"{folder}: after kills, {', '.join(wrong)} differ from the undisturbed training's")


def harness(kills: int, backend: str, seed: int, work: Path) -> int:
    """Kill so often; how many trainings it took.

    Raises
    ------
    RuntimeError, AssertionError, or what reading a damaged file raises
        At the first thing that is not as it must be.
    """
    rng = random.Random(seed)
    output = work / "output"
    wait(launch(work / "peace", backend, output))  # compiles what is to be compiled
    shutil.rmtree(work / "peace")
    started = time.monotonic()
    wait(launch(work / "peace", backend, output))
    seconds = time.monotonic() - started
    expected = results(work / "peace")
    print(f"undisturbed: {seconds:.1f} s; files, log, scores and weights of it are what must come out", flush=True)
    trainings = done = 0
    while done < kills:
        folder, saved = work / f"killed-{trainings}", {}
        while not wait(launch(folder, backend, output), rng.uniform(0, seconds) if done < kills else None):
            done += 1
            before, saved = saved, steps_saved(folder)
            lost = {name: step for name, step in before.items() if saved.get(name, -1) < step}
            if lost:
                raise RuntimeError(f"{folder}: the checkpoints of steps {lost} are lost")
        compare(expected, results(folder), folder)
        shutil.rmtree(folder)
        trainings += 1
        print(f"{done} kills, {trainings} trainings", flush=True)
    return trainings


def main() -> int:
    """Run the command; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        try:
            trainings = harness(options.kills, options.backend, options.seed, Path(work))
        except BaseException:
            print((Path(work) / "output").read_text()[-2000:], file=sys.stderr)
            raise
    print(f"{options.kills} kills of {trainings} trainings: nothing lost, nothing damaged, the same bits in the end")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
