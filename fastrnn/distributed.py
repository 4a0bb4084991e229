"""Data-parallel training: several processes, each with its share of every minibatch, joined by MPI.

mpi4py (extra ``mpi``) is imported, and MPI started, in :func:`connect` alone.
"""

import os
import signal
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastrnn import backend
from fastrnn.arrays import Array

# Launchers tell each process its rank and how many there are
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_REMEDY = (
    "start with the mpiexec of that library (mpiexec -n RANKS), or under Slurm with srun --mpi=pmix or pmi2"
)


def launched() -> bool:
    """Whether an MPI launcher started this process together with others."""
    return _told_rank() and _told_size() != 1


def _told_rank() -> bool:
    return any(name in os.environ for name in _RANKS)


def _told_size() -> int | None:
    return next((int(os.environ[name]) for name in _SIZES if _told_rank() and name in os.environ), None)


def connect() -> "Ranks":
    """Join the processes that were started together, e.g. by ``mpiexec -n 4``.

    Raises ``ImportError`` without mpi4py or without an MPI library, ``RuntimeError`` where no launcher
    started the process, or that of another MPI library: then every process would believe to be alone.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True  # where it does not fit, it would abort
        from mpi4py import MPI
    except ImportError as error:
        raise ImportError(
            f"MPI cannot be loaded ({error}): pip install 'fastrnn[mpi]' mpich, or use the MPI of the cluster"
        ) from error
    library = MPI.get_vendor()[0]
    if "OMPI_COMM_WORLD_SIZE" in os.environ and library != "Open MPI":
        raise RuntimeError(
            f"this process was started by Open MPI, and its MPI library is {library}: {_REMEDY}"
        )
    if not MPI.Is_initialized():
        MPI.Init_thread()
    ranks = Ranks(MPI, MPI.COMM_WORLD.Dup())
    told = _told_size()
    if told is not None and ranks.size != told:
        raise RuntimeError(
            f"the launcher started {told} processes, but {library} sees {ranks.size}: {_REMEDY}"
        )
    if not _told_rank() and ranks.size == 1:
        raise RuntimeError(f"no MPI launcher started this process; its MPI library is {library}: {_REMEDY}")
    return ranks


class Ranks:
    """The processes that train together: ``rank`` is this one's number, from 0, ``size`` how many there are.

    Every method but :meth:`share` must be called by all of them, in the same order.
    """

    def __init__(self, mpi: Any, comm: Any) -> None:
        self._mpi, self._comm = mpi, comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    def share(self, count: int) -> slice:
        """This rank's part of so many items in a row; the ranks' parts differ by one item at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, array: Array) -> None:
        """Replace an array, in place, by the sum of those of all ranks: the same bits for each of them."""
        self._comm.Allreduce(self._mpi.IN_PLACE, array, op=self._mpi.SUM)

    def broadcast(self, array: Array) -> None:
        """Replace an array, in place, by that of rank 0."""
        self._comm.Bcast(array, root=0)

    def any(self, condition: bool) -> bool:
        """Whether it holds on some rank."""
        return bool(self._comm.allreduce(condition, op=self._mpi.LOR))

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, anything that can be pickled."""
        return self._comm.bcast(value, root=0)

    def check_same(self, what: str, value: str) -> None:
        """Raise ``ValueError``, on all ranks, unless all have the same value."""
        values = self._comm.allgather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise ValueError(
                    f"{what}: rank 0 has {values[0]}, rank {rank} has {other}; expected the same"
                )

    def check_agreement(self, params: Array, iteration: int) -> None:
        """Raise ``RuntimeError`` unless the ranks' parameters are the same to the last bit."""
        digest = zlib.crc32(params.view(np.uint8).data)
        extremes = np.array([digest, -digest], np.int64)
        self._comm.Allreduce(self._mpi.IN_PLACE, extremes, op=self._mpi.MAX)
        if extremes[0] != -extremes[1]:
            raise RuntimeError(
                f"the ranks' parameters differ at iteration {iteration}: go on from the last checkpoint, and "
                "see that all machines are of one kind, with the same backend and instruction set"
            )

    def threads_each(self) -> int:
        """How many threads each rank should compute on: the cores of its machine by the ranks on it."""
        here = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        own = backend.cores()
        every = frozenset[str]().union(*here.allgather(own))
        return max(1, min(len(own), min(len(every), backend.cpu_quota()) // int(here.Get_size())))

    @contextmanager
    def one_after_the_other_on_each_machine(self) -> Iterator[None]:
        """The first rank of each machine goes through the block alone, then the others."""
        here = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        if here.Get_rank() > 0:
            here.Barrier()
        yield
        if here.Get_rank() == 0:
            here.Barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """End every rank where one of them raises: the others would wait for it for ever.

        What all raise is told by rank 0 alone, the others wait for that.
        """
        try:
            yield
        except (KeyboardInterrupt, SystemExit) as ended:
            code = getattr(ended, "code", 128 + signal.SIGINT)
            self._comm.Abort(code if isinstance(code, int) else 1)
        except Exception as error:
            if self.rank > 0:
                time.sleep(1)
            print(f"fastrnn: rank {self.rank} of {self.size}: {error}", file=sys.stderr, flush=True)
            self._comm.Abort(2)
