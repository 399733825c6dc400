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


class TeamError(RuntimeError):
    """The processes cannot work together; the text says what is missing."""


class Team:
    """One process, or all that an MPI launcher has started.

    Attributes
    ----------
    rank, size : int
        This process's number, from 0, and how many there are.
    neighbours : int
        How many of them share this machine, this one included.
    """

    rank, size, neighbours = 0, 1, 1

    @property
    def threads(self) -> int | None:
        """This process's share of its machine's cores; None for one that need not share."""
        if self.neighbours == 1:
            return None
        return max(1, cores() // self.neighbours)

    def sum(self, array: np.ndarray) -> None:
        """Replace an array, in every process, by the sum of all; two processes' sums are exact to the bit."""

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        return number

    def wait(self) -> None:
        """Return when all are here."""


ALONE = Team()


class MPITeam(Team):
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
        self.neighbours = self._world.Split_type(mpi.COMM_TYPE_SHARED).size

    def sum(self, array: np.ndarray) -> None:
        self._world.Allreduce(self._mpi.IN_PLACE, array)

    def most(self, number: int) -> int:
        found = np.array([number], np.int64)
        self._world.Allreduce(self._mpi.IN_PLACE, found, self._mpi.MAX)
        return int(found[0])

    def wait(self) -> None:
        self._world.Barrier()


def launched_rank() -> int | None:
    """This process's number as an MPI launcher gave it, or None without one; MPI need not be there."""
    ranks = [int(text) for name in _RANKS if (text := os.environ.get(name, "")).isdecimal()]
    return ranks[0] if ranks else None


def join() -> Team:
    """The team of this process: what an MPI launcher started, or itself alone.

    Raises
    ------
    TeamError
        If a launcher started it, and MPI cannot be used.
    """
    return ALONE if launched_rank() is None else MPITeam(_mpi())


def _mpi() -> Any:
    """`mpi4py.MPI`, which is up from its first import on; that waits for the others to do the same."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, but no MPI library is
        reason = " ".join(str(error).split())
        raise TeamError(f"expected mpi4py and an MPI library, got {reason}; try pip install 'icnn[mpi]'") from None
    return MPI


def end_all(code: int, last_words: Callable[[], None], precedence: float) -> None:
    """End all processes of a team with this exit code, whatever they are at; where there is none, return.

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
    with suppress(TeamError):
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


def sharded_step(plan: Plan, parts: Iterable[Sequence[np.ndarray]], optimiser: SGD, team: Team) -> np.ndarray:
    """One update from a batch in parts, here and in all processes of the team; the loss before it.

    The sum has one order, part by part and process by process; of two parts it does not matter which process has which.

    Parameters
    ----------
    plan : Plan
        Its parameters are the same in all processes, and stay so.
    parts : iterable of images (n, C, H, W), labels (n, H, W), weights (n, H, W)
        This process's; n at most the plan's batch.
    optimiser : SGD
    team : Team

    Raises
    ------
    ValueError
        For what `Plan.forward` and `Plan.loss` do not accept, or weights that sum to 0 over all parts.
    """
    gradients = plan.flat_gradients
    parts = [part for part in parts if part[2].any()]
    sums = [weights.sum(dtype=gradients.dtype) for _, _, weights in parts]
    total = np.array(sum(sums), gradients.dtype)
    team.sum(total)
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
    plan.sum_gradients(team)
    team.sum(loss)
    plan.update(optimiser)
    return loss
