"""`cupyx.distributed` for the stand-in: sums of device memory over processes, which are MPI's here."""

import sys
from types import ModuleType

import numpy as np
import standin
from standin_arrays import ndarray, write


class Group:
    """CuPy's communicator, as thin."""

    def __init__(self, size: int, rank: int):
        from mpi4py import MPI

        self._mpi, self._world = MPI, MPI.COMM_WORLD
        assert (size, rank) == (self._world.size, self._world.rank)
        places = self._world.allgather(standin.cupy.cuda.Device().id)
        assert len(set(places)) == size, "NCCL refuses two processes on one device"

    def all_reduce(self, in_array, out_array, op="sum", stream=None):
        """The sum over all processes, when the stream comes to it."""
        assert in_array is out_array and isinstance(in_array, ndarray) and in_array.flags.c_contiguous and op == "sum"

        def run(view: np.ndarray) -> None:
            total = np.empty_like(view)
            self._world.Allreduce(view, total)
            write(view, total)

        in_array._ask("sum over processes", run, stream=stream)


def init_process_group(n_devices, rank, *, backend="nccl", host=None, port=None, use_mpi=False):
    """Called by all processes."""
    assert backend == "nccl" and host is port is None and use_mpi
    return Group(n_devices, rank)


distributed = ModuleType("cupyx.distributed")
vars(distributed)["init_process_group"] = init_process_group
sys.modules["cupyx.distributed"] = distributed
