"""Data-parallel SGD: processes that train one network together, each on its part of every batch.

A batch is cut into shards. The loss is a weighted mean over all of its pixels (Sec. 2.5), so each process divides by
the sum of all weights, and the batch's gradient is the plain sum of the processes': with two numbers more, that is all
they exchange.
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

#: Variables in which launchers tell a process its number: Hydra and Intel, Open MPI, PMIx.
_RANKS = "PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK"


class DistributedError(RuntimeError):
    """The processes cannot work together; the text says what is missing."""


class Communicator:
    """One process, or all that an MPI launcher has started.

    Attributes
    ----------
    rank, size : int
        This process's number, from 0, and how many there are.
    local_size : int
        How many of them share this machine, this one included.
    """

    rank, size, local_size = 0, 1, 1

    @property
    def threads(self) -> int | None:
        """This process's share of its machine's cores; None for one that need not share."""
        if self.local_size == 1:
            return None
        return max(1, cores() // self.local_size)

    def all_reduce(self, array: np.ndarray) -> None:
        """Sum an array over all processes, in place; with two, in the same bits whichever is first."""

    def all_max(self, number: int) -> int:
        """Return the maximum of a number over all processes."""
        return number

    def barrier(self) -> None:
        """Wait until all processes have called this."""


SINGLE = Communicator()


class MPICommunicator(Communicator):
    """The processes of an MPI communicator.

    Parameters
    ----------
    mpi : module
        `mpi4py.MPI`.
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
    """This process's number as an MPI launcher gave it, or None without one; MPI need not be there."""
    ranks = [int(text) for name in _RANKS if (text := os.environ.get(name, "")).isdecimal()]
    return ranks[0] if ranks else None


def join() -> Communicator:
    """Return the communicator of the processes that an MPI launcher started; `SINGLE` without one.

    Raises
    ------
    DistributedError
        If a launcher started it, and MPI cannot be used.
    """
    return SINGLE if launched_rank() is None else MPICommunicator(_mpi())


def _mpi() -> Any:
    """`mpi4py.MPI`, which is up from its first import on; that waits for the others to do the same."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, but no MPI library is
        reason = " ".join(str(error).split())
        raise DistributedError(
            f"expected mpi4py and an MPI library, got {reason}; try pip install 'icnn[mpi]'"
        ) from None
    return MPI


def end_all(code: int, last_words: Callable[[], None], precedence: float) -> None:
    """End all processes with this exit code, whatever they are at; where there is none, return.

    One that has not joined yet joins for it: else the others would wait for it for ever.

    Parameters
    ----------
    code : int
    last_words : callable
        Called before. All but the first process leave that to the first for a while: mostly all fail alike.
    precedence : float
        Seconds of that while.
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
        world.Abort(code)


def shards_of(count: int, shards: int) -> list[slice]:
    """Cut `count` images into so many parts, the first ones larger by one where that does not come out even."""
    ends = np.cumsum([len(part) for part in np.array_split(np.arange(count), shards)]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def sharded_step(plan: Plan, parts: Iterable[Sequence[np.ndarray]], optimiser: SGD, comm: Communicator) -> np.ndarray:
    """One update from a batch in parts, here and in all processes; the loss before it.

    The sum has one order, part by part and process by process; of two parts it does not matter which process has which.

    Parameters
    ----------
    plan : Plan
        Its parameters are the same in all processes, and stay so.
    parts : iterable of images (n, C, H, W), labels (n, H, W), weights (n, H, W)
        This process's; n at most the plan's batch.
    optimiser : SGD
    comm : Communicator

    Raises
    ------
    ValueError
        For what `Plan.forward` and `Plan.loss` do not accept, or weights that sum to 0 over all parts.
    """
    gradients = plan.flat_gradients
    parts = [part for part in parts if part[2].any()]
    sums = [weights.sum(dtype=gradients.dtype) for _, _, weights in parts]
    total = np.array(sum(sums), gradients.dtype)
    comm.all_reduce(total)
    if not total > 0:
        raise ValueError("expected weights of at least 0 whose sum is not 0")
    loss = np.zeros_like(total)
    kept = None if len(parts) == 1 else np.zeros(gradients.shape, gradients.dtype)  # one part's are where they belong
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
