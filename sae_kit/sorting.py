"""Sorting by two keys, and what stands where within runs of equal values."""

import torch
from jaxtyping import Int
from torch import Tensor


def lexsort(major: Tensor, minor: Tensor) -> Int[Tensor, " n"]:
    """The order by `major`, and by `minor` where that is equal; entries equal in both stay as they
    are.
    """
    order = torch.argsort(minor, stable=True)
    return order[torch.argsort(major[order], stable=True)]


def starts(ordered: Int[Tensor, " n"]) -> Int[Tensor, " n_groups"]:
    """Where each run of equal values begins."""
    first = torch.ones(len(ordered), dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first.nonzero().flatten()


def rank_in_group(ordered: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The place of each entry in its run of equal values, from 0."""
    begins = starts(ordered)
    lengths = torch.diff(begins, append=torch.tensor([len(ordered)]))
    return torch.arange(len(ordered)) - begins.repeat_interleave(lengths)


def offsets(ordered: Int[Tensor, " n"], n_groups: int) -> list[int]:
    """Where the entries of groups 0, 1, ... begin in their sorted numbers, and where the last ends:
    group g is `[offsets[g]:offsets[g + 1]]`, also if it is empty.
    """
    return torch.searchsorted(ordered, torch.arange(n_groups + 1)).tolist()
