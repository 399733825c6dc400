"""Do processes with a GPU each sum their gradients from device to device, and compute what one process does?"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import finished, launched

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

PROGRAM = """
import sys
from hashlib import sha256
import cupy
import standin
standin.configure(devices=int(sys.argv[1]), nccl=sys.argv[2] == "nccl")
import numpy as np
from minicnn import SGD, Graph, Plan
from minicnn.kernels import get_backend
from minicnn.layers import Conv2D, Input
from minicnn.distributed import join, sharded_step, shards_of

graph = Graph(preset="test", labels=2, size=6)
graph.add("image", Input(1, 6, 6))
graph.add("y", Conv2D(2, 3), "image")
comm, rng = join(), np.random.default_rng(5)
plan = Plan(graph, 2, "cupy", seed=1)
for _ in range(3):
    batch = rng.normal(size=(3, 1, 6, 6)), rng.integers(0, 2, (3, 6, 6)), rng.uniform(0, 2, (3, 6, 6))
    own = shards_of(3, 2)[comm.rank :: comm.size]
    loss = sharded_step(plan, [[array[part] for array in batch] for part in own], SGD(lr=0.1, momentum=0.9), comm)
way = get_backend("cupy").all_reduce(comm).__name__
values = sha256(plan.state()["values"].tobytes()).hexdigest()
standin.finish()
sys.stdout.write(f"{way} {cupy.cuda.Device().id} {float(loss).hex()} {values}\\n")  # in one piece
"""


def outcome(processes: int, devices: int, nccl: bool) -> list[list[str]]:
    """What each process says: the way its sums go, its device, the last loss and the parameters."""
    paths = os.pathsep.join(map(str, (HERE / "in_place", ROOT)))
    command = [sys.executable, "-c", PROGRAM, str(devices), "nccl" if nccl else "none"]
    environment = os.environ | {"PYTHONPATH": paths}
    if processes == 1:  # no communicator at all
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=environment, **pipes)
    else:
        process = launched(*[command] * processes, env=environment)
    code, output, errors = finished(process)
    assert code == 0, errors
    return sorted(line.split() for line in output.splitlines())


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is needed to run CUDA kernels on the CPU")
def test_two_processes_equal_one_to_the_bit_whichever_way_their_sums_go():
    ((_, device, *expected),) = outcome(1, 1, nccl=False)
    assert device == "0"
    for devices, nccl, way, places in (
        (2, True, "between_devices", ["0", "1"]),
        (2, False, "through_host", ["0", "1"]),
        (1, True, "through_host", ["0", "0"]),  # NCCL wants a device for each
    ):
        said = outcome(2, devices, nccl)
        assert [line[:2] for line in said] == [[way, place] for place in places]
        assert all(line[2:] == expected for line in said)
