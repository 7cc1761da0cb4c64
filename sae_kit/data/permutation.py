"""Permutations of any length that are computed entry by entry and never stored.

A Feistel network over pairs of residues: a number below side^2 is cut into two digits to the base
side = ceil(sqrt(n)), and every round adds a keyed hash of one digit to the other, modulo side. The
result is a bijection whatever the hash is. Entries that land at n or beyond go through the network
again until they land below (fewer than 2 in sqrt(n) do). The hash is the finaliser of splitmix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014); for numbers
that are no power of two: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.

Mixing: with ideal round functions four rounds cannot be told from a random permutation by anything
that looks at far fewer than sqrt(side) entries (Luby and Rackoff 1988). Eight are done, as four
show in orders of fewer than 100; the tests hold places, neighbours and epochs to what random orders
show.

Limits: not for secrets; and of the n! permutations of a long list it reaches 2^128 at most.
"""

from collections.abc import Sequence
from math import isqrt
from typing import final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

N_ROUNDS = 8


@final
class Permutation:
    """A pseudo-random order of 0..n-1."""

    def __init__(self, n: int, *, seed: Sequence[int]) -> None:
        """The order that `seed`, one or more numbers of at least 0, stands for."""
        if n < 1:
            raise ValueError(f"n: {n} numbers cannot be permuted; give 1 or more")
        self.n = n
        self._side = np.uint64(isqrt(n - 1) + 1)
        self._keys = np.random.SeedSequence(list(seed)).generate_state(N_ROUNDS, np.uint64)

    def __call__(self, places: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
        """What stands at these places, each in 0..n-1; int64, on the CPU."""
        entries = self._network(places.numpy().astype(np.uint64))
        while (outside := entries >= self.n).any():
            entries[outside] = self._network(entries[outside])
        return torch.from_numpy(entries.astype(np.int64))

    def _network(self, x: np.ndarray) -> np.ndarray:
        left: np.ndarray = x // self._side
        right: np.ndarray = x % self._side
        for key in self._keys:
            left, right = right, (left + _hash(right ^ key) % self._side) % self._side
        return left * self._side + right


def _hash(x: np.ndarray) -> np.ndarray:
    """Splitmix64's finaliser; products wrap around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
