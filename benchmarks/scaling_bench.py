"""``python benchmarks/scaling_bench.py``: several MPI processes beside as many threads of one, and what that foretells.

Both variants train on the same batches, from photograph to update. Each
measurement starts new processes; the two variants alternate.
`benchmarks/scaling.md` explains the prediction.
"""

import json
import math
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import which
from statistics import median

import numpy as np
from measure import Goal, format_goals, machine, result_file, write_figures

from icnn.cli import Parser, existing_folder, positive, progress, run, text_table
from icnn.config import load_config
from icnn.data.folder import SmithFolder
from icnn.errors import InputError
from icnn.model.network import icnn_graph
from icnn.stages import NETWORKS
from icnn.synthetic.faces import synthetic_faces
from icnn.train.batches import Batches, samples_of
from icnn.train.trainer import own_shards
from minicnn import SGD, Plan
from minicnn.distributed import join, sharded_step
from minicnn.kernels.host import cores

FACES = 20  # synthetic faces unless --data is given
OPTIMISER = SGD(lr=0.01, momentum=0.9, nesterov=True)
SUMS = 50  # timed Allreduce calls
LEAST, AIM = 0.9, 1.0  # bound and target: images per second of processes over those of threads

#: Message latency in seconds and bandwidth in bytes per second of common interconnects.
LINKS = {"10 Gbit/s Ethernet": (30e-6, 1.25e9), "100 Gbit/s Ethernet": (10e-6, 12.5e9), "InfiniBand HDR": (2e-6, 25e9)}
SIZES = (8, 64, 512)  # numbers of processes
WEAK, STRONG = 10, 512  # weak scaling: images per process and step; strong scaling: images per step in all


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = Parser(prog="python benchmarks/scaling_bench.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=existing_folder, metavar="DIR", help="photographs (default: synthetic faces)")
    parser.add_argument("--processes", type=positive, default=cores(), metavar="N", help="(default: as many as cores)")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="turns of each (default: 5)")
    parser.add_argument("--steps", type=positive, default=30, metavar="N", help="of each network (default: 30)")
    parser.add_argument("--json", type=result_file, metavar="FILE", help="also write the figures")
    parser.add_argument("--worker", type=positive, metavar="THREADS", help="what the command starts")
    options = parser.parse_args(argv)
    if options.worker:
        _work(options.data, options.worker, options.steps)
        return 0
    launcher = _launcher()
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    sums: list[float] = []
    for _ in progress(range(options.rounds), "rounds"):
        for kind, before, threads in (
            ("processes", [launcher, "-n", str(options.processes)], 1),
            ("threads", [], options.processes),
        ):
            figures = _turn(before, options, threads)
            for network in NETWORKS:
                rates[network, kind].append(figures[network])
            if kind == "processes":
                sums.append(figures["sum"])
    rows = [_row(name, rates[name, "processes"], rates[name, "threads"]) for name in NETWORKS]
    total = [_of_a_training(rates, kind) for kind in ("processes", "threads")]
    rows.append(("all, a step of each", *(f"{rate:.0f}" for rate in total), f"{total[0] / total[1]:.2f}"))
    print(machine())
    print(f"\n{options.processes} processes beside {options.processes} threads, images per second, medians\n")
    print(text_table([("network", "processes", "threads", "ratio"), *rows], 1))
    size = 4 * _numbers()
    print(f"\nAllreduce of {size / 1e6:.2f} MB: {1e3 * median(sums):.2f} ms (median of all rounds)\n")
    print(format_goals([Goal("processes / threads", total[0] / total[1], LEAST, AIM)]))
    image = options.processes / total[0]
    print(f"\nForetold from {1e3 * image:.1f} ms an image and process:\n")
    print(text_table([("", "", *(f"{p} processes" for p in SIZES)), *foretold(image, size)], 2))
    if options.json:
        write_figures(
            options.json,
            machine(),
            rates={f"{name} {kind}": found for (name, kind), found in rates.items()},
            allreduce_seconds=sums,
            bytes=size,
        )
    return 0


def _launcher() -> str:
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else which("mpiexec")
    if not found:
        raise InputError("expected mpiexec, found none; try pip install 'icnn[mpi]' mpich")
    return found


def _turn(before: list[str], options, threads: int) -> dict[str, float]:
    command = [*before, sys.executable, __file__, "--worker", str(threads), "--steps", str(options.steps)]
    if options.data:
        command += ["--data", str(options.data)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _work(folder: Path | None, threads: int, steps: int) -> None:
    """Run one measurement, as one of several processes or alone; rank 0 prints images per second as JSON."""
    comm, config, started = join(), load_config(None, []), 0.0
    faces = SmithFolder(folder).load_split("tuning")[:FACES] if folder else synthetic_faces(FACES, 0, "exemplars")
    rates = {}
    for name, network in NETWORKS.items():
        train, augment = config.for_network(name)
        (part,) = own_shards(train, comm)
        batches = Batches(name, samples_of(name, faces, train.centre), train, augment, config.seed)
        plan = Plan(icnn_graph(network.labels, network.size), part.stop - part.start, "numba", threads=threads)
        ahead = batches.ahead(0, 3 + steps, part=part)
        for number, batch in enumerate(ahead):
            if number == 3:  # warm-up is over: kernels are compiled, threads are awake
                comm.barrier()
                started = time.perf_counter()
            if comm.size == 1:
                plan.step(batch.images, batch.labels, OPTIMISER, batch.weights)
            else:
                sharded_step(plan, [batch], OPTIMISER, comm)
        comm.barrier()
        rates[name] = steps * train.batch / (time.perf_counter() - started)
    vector, seconds = np.zeros(_numbers(), np.float32), []
    for _ in range(SUMS):
        comm.barrier()
        started = time.perf_counter()
        comm.all_reduce(vector)
        seconds.append(time.perf_counter() - started)
    if comm.rank == 0:
        print(json.dumps({**rates, "sum": median(seconds)}))
    sys.stdout.flush()


def _numbers() -> int:
    """Return the number of gradient values summed per step for a network with two classes."""
    return sum(map(math.prod, icnn_graph(2, 64).parameter_shapes.values()))


def _row(name: str, processes: Sequence[float], threads: Sequence[float]) -> tuple[str, ...]:
    ratio = median(one / other for one, other in zip(processes, threads, strict=True))
    return name, f"{median(processes):.0f}", f"{median(threads):.0f}", f"{ratio:.2f}"


def _of_a_training(rates: dict[tuple[str, str], list[float]], kind: str) -> float:
    """Return the images per second over one step of each network."""
    return len(NETWORKS) / sum(1 / median(rates[name, kind]) for name in NETWORKS)


def sum_seconds(processes: int, size: float, latency: float, bandwidth: float) -> float:
    """Return the modelled seconds of a step's all_reduce calls.

    The gradients use recursive halving and doubling (Rabenseifner), two scalars a tree up and down. Each of the three
    takes 2 log2 p messages; the gradients transfer 2 (p - 1) / p of their bytes.

    Parameters
    ----------
    processes : int
    size : float
        Bytes of the gradients.
    latency, bandwidth : float
        Seconds per message, and bytes per second.
    """
    return 3 * 2 * math.ceil(math.log2(processes)) * latency + 2 * (processes - 1) / processes * size / bandwidth


def foretold(image: float, size: float) -> Iterator[tuple[str, ...]]:
    """Yield rows of predicted efficiency (share of ideal speed) by interconnect and number of processes.

    `image` is the seconds per image, `size` the bytes of the gradients.
    """
    for kind in ("weak", "strong"):
        for link, (latency, bandwidth) in LINKS.items():
            shares = []
            for processes in SIZES:
                images = WEAK if kind == "weak" else math.ceil(STRONG / processes)
                ideal = WEAK * image if kind == "weak" else STRONG / processes * image
                seconds = images * image + sum_seconds(processes, size, latency, bandwidth)
                shares.append(f"{100 * ideal / seconds:.1f} %")
            yield kind, link, *shares


if __name__ == "__main__":
    run(main, "scaling_bench")
