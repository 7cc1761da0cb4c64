"""The processes of a run, and what they say to each other. The only importer of torch.distributed.

A launcher (torchrun) starts the processes and tells each its number; `joined` connects them. All
that follows is collective: every process calls the same functions in the same order. Alone, a
process says nothing, and every function here returns at once with what it was given.

Limits: `gather` pickles what it sends; it comes from the run's own processes. A process that ends
without a word is noticed by its neighbours at the next exchange (`PeerLost`), not before.
"""

import contextlib
import gc
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others, one of whom may be tokenising, or measuring SAEs."""

DENSE_SHARE = 0.7
"""Above this share of rows that are not zero, `mean_rows_` sends all: packing costs as much."""


class PeerLost(RuntimeError):
    """Another process of the run has ended, or cannot be reached."""


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
    if _connected():
        return World(distributed.get_rank(), distributed.get_world_size())
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World(0, 1)
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not (rank.isdecimal() and size.isdecimal()):
        raise ValueError(f"RANK={rank!r} WORLD_SIZE={size!r}: both must be numbers, or unset")
    return World(int(rank), int(size))


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Within, the processes that the launcher started are connected.

    Each takes the accelerator of its number on its machine, where there are any.

    Raises:
        PeerLost: the others did not come.
    """
    here = world()
    if here.size == 1:
        yield here
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", here.rank)))
        backend = "cpu:gloo,cuda:nccl"
    with _listening():
        distributed.init_process_group(backend, timeout=PATIENCE)
    yield here
    # Not after an error: with one process gone, saying goodbye may wait for it.
    distributed.destroy_process_group()
    # The group lies in a reference cycle, and its threads crash if they outlive the interpreter.
    gc.collect()


def barrier() -> None:
    """Return when every process is here."""
    gather(None)


def gather(value: Any) -> list[Any]:
    """What every process gives, by number. For small things."""
    if not _connected():
        return [value]
    found: list[Any] = [None] * distributed.get_world_size()
    with _listening():
        distributed.all_gather_object(found, value)
    return found


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if not _connected():
        return number
    told = torch.tensor(number)
    with _listening():
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return int(told)


def summed(tensor: Tensor) -> Tensor:
    """The sum over the processes."""
    if not _connected():
        return tensor
    total = tensor.clone()
    with _listening():
        distributed.all_reduce(total)
    return total


def mean(number: float) -> float:
    """The mean over the processes."""
    if not _connected():
        return number
    return float(summed(torch.tensor(number, dtype=torch.float64))) / world().size


def broadcast_(tensors: Sequence[Tensor]) -> None:
    """Process 0's values, in every process."""
    if _connected():
        for tensor in tensors:
            with _listening():
                distributed.broadcast(tensor, 0)


def mean_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one dtype by their means over the processes; sent as one."""
    if not _connected() or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _listening():
        distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for tensor, values in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))


def mean_rows_(matrices: Sequence[Tensor]) -> None:
    """Replace matrices `[rows _]` by their means, sending only rows that some process has.

    A row is had where any of the matrices is not zero in it. Exact: other rows have mean 0.
    """
    if not _connected() or not matrices:
        return
    active = torch.stack([(matrix != 0).any(1) for matrix in matrices]).any(0).to(torch.uint8)
    with _listening():
        distributed.all_reduce(active, distributed.ReduceOp.MAX)
    rows = active.nonzero().flatten()
    for matrix in matrices:
        if len(rows) > DENSE_SHARE * len(active):
            mean_([matrix])
        else:
            packed = matrix[rows]
            mean_([packed])
            matrix[rows] = packed


def exchange(parts: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Send `parts[r]` to process r; returns what every process has sent here, by number.

    Every process sends the same number of tensors, of the same shapes and dtype, to one receiver.
    """
    if not _connected():
        return [list(parts[0])]
    here, own = world(), parts[world().rank]
    sent = torch.cat([tensor.flatten() for part in parts for tensor in part])
    sizes = [sum(tensor.numel() for tensor in part) for part in parts]
    received = sent.new_empty(here.size * sizes[here.rank])
    with _listening():
        distributed.all_to_all_single(received, sent, [sizes[here.rank]] * here.size, sizes)
    return [
        [
            values.view_as(like)
            for values, like in zip(chunk.split([t.numel() for t in own]), own, strict=True)
        ]
        for chunk in received.split(sizes[here.rank])
    ]


def _connected() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    """What goes wrong in an exchange, as a PeerLost."""
    try:
        yield
    except RuntimeError as error:
        # The back end says where in its sources it noticed, and then why, at some length.
        said = (str(error).splitlines() or ["no reason given"])[0]
        reason = re.sub(r"^\[\S+\] ", "", said).partition(". ")[0]
        raise PeerLost(
            f"another process of the run has ended or cannot be reached ({reason})"
        ) from error
