"""Which of how many processes this is. The only importer of torch.distributed.

Limits: it reports, it does not communicate and does not start anything.
"""

import os
from dataclasses import dataclass

from torch import distributed


@dataclass(frozen=True)
class World:
    """One process among those of a run."""

    rank: int
    """This process's number, from 0."""
    size: int
    """Number of processes."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: {self.size} processes; there is at least 1")
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank: {self.rank} is not in 0..{self.size - 1}")


def world() -> World:
    """This process's place: of the process group, else of its launcher, else alone.

    A launcher (torchrun) sets RANK and WORLD_SIZE before any group exists.

    Raises:
        ValueError: RANK or WORLD_SIZE is no number, or they contradict each other.
    """
    if distributed.is_available() and distributed.is_initialized():
        return World(distributed.get_rank(), distributed.get_world_size())
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World(0, 1)
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not (rank.isdecimal() and size.isdecimal()):
        raise ValueError(f"RANK={rank!r} WORLD_SIZE={size!r}: both must be numbers, or unset")
    return World(int(rank), int(size))
