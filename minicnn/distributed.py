"""Data-parallel SGD: several processes train one network, each on its part of every batch.

A batch is cut into shards. The loss is a weighted mean over all pixels of the batch (Sec. 2.5), so each process divides
by the sum of all weights, and the gradient of the batch is the sum of the gradients of all processes. The processes
exchange only this gradient and two numbers: the sum of the weights, and the loss.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from minicnn.kernels.host import cores
from minicnn.plan import Plan
from minicnn.sgd import SGD

#: Environment variables that hold the rank of a process: Hydra and Intel MPI, Open MPI, PMIx.
_RANKS = "PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK"

#: Seconds that a launcher gets to pass on what a process wrote. A launcher that reads the abort first drops the text.
_FORWARDING = 1.0


class DistributedError(RuntimeError):
    """Distributed training is not possible; the message names what is missing."""


class Communicator:
    """Group of processes; this base class is a group of one, without MPI.

    Attributes
    ----------
    rank, size : int
        Number of this process, from 0, and number of processes.
    local_size : int
        Number of processes on this machine, including this one.
    """

    rank, size, local_size = 0, 1, 1

    @property
    def threads(self) -> int | None:
        """CPU threads for this process: its share of the machine's cores, or None if it is alone on the machine."""
        if self.local_size == 1:
            return None
        return max(1, cores() // self.local_size)

    def all_reduce(self, array: np.ndarray) -> None:
        """Sum an array over all processes, in place; with two processes, the bits do not depend on their order."""

    def all_max(self, number: int) -> int:
        """Return the maximum of a number over all processes."""
        return number

    def barrier(self) -> None:
        """Wait until all processes have called this method."""


SINGLE = Communicator()


class MPICommunicator(Communicator):
    """All processes that an MPI launcher started (`COMM_WORLD`).

    Parameters
    ----------
    mpi : module
        The module `mpi4py.MPI`.
    """

    def __init__(self, mpi: Any):
        self._mpi = mpi
        self._world = mpi.COMM_WORLD
        self.rank, self.size = self._world.rank, self._world.size
        self.local_size = self._world.Split_type(mpi.COMM_TYPE_SHARED).size

    def all_reduce(self, array: np.ndarray) -> None:
        self._world.Allreduce(self._mpi.IN_PLACE, array)

    def all_max(self, number: int) -> int:
        found = np.array([number], np.int64)
        self._world.Allreduce(self._mpi.IN_PLACE, found, self._mpi.MAX)
        return int(found[0])

    def barrier(self) -> None:
        self._world.Barrier()


def launched_rank() -> int | None:
    """Return the rank that an MPI launcher gave this process, or None without a launcher; does not need MPI."""
    ranks = [int(text) for name in _RANKS if (text := os.environ.get(name, "")).isdecimal()]
    return ranks[0] if ranks else None


def join() -> Communicator:
    """Return the communicator of all processes that an MPI launcher started, or `SINGLE` without a launcher.

    Raises
    ------
    DistributedError
        If an MPI launcher started this process but MPI is not usable.
    """
    return SINGLE if launched_rank() is None else MPICommunicator(_mpi())


def _mpi() -> Any:
    """Import `mpi4py.MPI`; the first import initialises MPI and waits until all other processes do so too."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is installed, but no MPI library
        reason = " ".join(str(error).split())
        raise DistributedError(
            f"expected mpi4py and an MPI library, got {reason}; try pip install 'icnn[mpi]'"
        ) from None
    return MPI


def end_all(code: int, last_words: Callable[[], None], precedence: float) -> None:
    """Abort all MPI processes with exit code `code`, whatever they are doing; return if there is no MPI.

    A process that has not initialised MPI yet does so here: otherwise the others would wait for it forever.

    Parameters
    ----------
    code : int
        Exit code of all processes.
    last_words : callable
        Called before the abort, to report the error; also called without MPI.
    precedence : float
        Seconds that all ranks but 0 wait before they report, since usually all fail with the same error.
    """
    rank = launched_rank()
    if rank is None:
        last_words()
        return
    world = None
    with suppress(DistributedError):
        world = _mpi().COMM_WORLD
    if rank:
        time.sleep(precedence)
    last_words()
    if world is not None:
        time.sleep(_FORWARDING)
        world.Abort(code)


def shards_of(count: int, shards: int) -> list[slice]:
    """Cut `count` images into `shards` consecutive slices; if it does not divide evenly, the first have one more."""
    ends = np.cumsum([len(part) for part in np.array_split(np.arange(count), shards)]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def sharded_step(plan: Plan, parts: Iterable[Sequence[np.ndarray]], optimiser: SGD, comm: Communicator) -> np.ndarray:
    """Update the parameters once in all processes, from a batch whose parts are spread over them.

    The order of summation is fixed: part by part, then process by process. With two parts in all, the result does not
    depend on which process has which part.

    Parameters
    ----------
    plan : Plan
        Its parameters must be equal in all processes; they stay equal.
    parts : iterable of (images (n, C, H, W), labels (n, H, W), weights (n, H, W))
        Parts of this process; n at most the plan's batch. Parts whose weights are all 0 are skipped.
    optimiser : SGD
    comm : Communicator

    Returns
    -------
    0-d array, the loss of the whole batch before the update

    Raises
    ------
    ValueError
        For arguments that `Plan.forward` or `Plan.loss` reject, or weights that sum to 0 over all parts.
    """
    gradients = plan.flat_gradients
    parts = [part for part in parts if part[2].any()]
    sums = [weights.sum(dtype=gradients.dtype) for _, _, weights in parts]
    total = np.array(sum(sums), gradients.dtype)
    comm.all_reduce(total)
    if not total > 0:
        raise ValueError("expected weights of at least 0 whose sum is not 0")
    loss = np.zeros_like(total)
    kept = None if len(parts) == 1 else np.zeros(gradients.shape, gradients.dtype)  # a single part's stays in place
    for (images, labels, weights), own in zip(parts, sums, strict=True):
        plan.forward(images)
        loss += plan.download(plan.loss(labels, weights)) * own / total
        plan.backward(float(total))
        if kept is not None:
            kept += plan.download(gradients)
    if kept is not None:
        plan.upload(gradients, kept)
    plan.all_reduce_gradients(comm)
    comm.all_reduce(loss)
    plan.update(optimiser)
    return loss
