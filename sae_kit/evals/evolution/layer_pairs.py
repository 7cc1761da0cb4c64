"""Pairs of sites whose SAEs are compared: every site with the next one, or those that are named."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from sae_kit.evals.base import Subject
from sae_kit.models.hooks import Site


@final
@dataclass(frozen=True)
class LayerPair:
    """Two sites with SAEs, the earlier first."""

    up: Site
    down: Site

    @property
    def name(self) -> str:
        """As results and configs write it."""
        return f"{self.up}>{self.down}"


def adjacent(subject: Subject) -> list[LayerPair]:
    """Every site that has an SAE with the next one that has.

    Raises:
        ValueError: there is one SAE only, or a block is missing between two.
    """
    sites = [site for site in subject.model.sites() if site in subject.saes]
    if len(sites) < 2:
        raise ValueError(
            f"saes: only {', '.join(sites)} has one, and latents are followed from one site to "
            "another; give SAEs at two sites or more"
        )
    for up, down in pairwise(sites):
        between = [site for site in _same_point(up, down) if site in subject.model.sites()]
        if between:
            raise ValueError(
                f"saes: none at {', '.join(between)}, between {up} and {down}; give them, or name "
                f'the pairs to compare: eval.pairs=["{up}>{down}"]'
            )
    return _checked([LayerPair(up, down) for up, down in pairwise(sites)], subject)


def named(names: Sequence[str], subject: Subject) -> list[LayerPair]:
    """The pairs of these names.

    Raises:
        ValueError: one is no pair of two sites with SAEs, the earlier first, or is there twice.
    """
    order = [site for site in subject.model.sites() if site in subject.saes]
    pairs = []
    for name in names:
        up, _, down = (part.strip() for part in name.partition(">"))
        if up not in order or down not in order or order.index(up) >= order.index(down):
            raise ValueError(
                f"pairs: {name!r} is no pair of sites with SAEs, the earlier first; write "
                f'"{order[0]}>{order[-1]}", of {", ".join(order)}'
            )
        pairs.append(LayerPair(up, down))
    if len(set(pairs)) < len(pairs):
        raise ValueError(f"pairs: {list(names)} has one twice; give each once")
    return _checked(
        sorted(pairs, key=lambda pair: (order.index(pair.up), order.index(pair.down))), subject
    )


def _checked(pairs: list[LayerPair], subject: Subject) -> list[LayerPair]:
    """The pairs, if decoder rows of both sides can be held against each other."""
    for pair in pairs:
        widths = [subject.saes[site].d_out for site in (pair.up, pair.down)]
        if widths[0] != widths[1]:
            raise ValueError(
                f"pairs: {pair.name} are SAEs of widths {widths[0]} and {widths[1]}, whose decoder "
                "rows cannot be compared; give sites of one width"
            )
    return pairs


def _same_point(up: Site, down: Site) -> list[Site]:
    """The sites of the blocks between two blocks, at the same point of the block; none if the two
    are at different points.
    """
    parts = [re.fullmatch(r"blocks\.(\d+)\.(.+)", site) for site in (up, down)]
    first, last = parts
    if first is None or last is None or first[2] != last[2]:
        return []
    return [f"blocks.{i}.{first[2]}" for i in range(int(first[1]) + 1, int(last[1]))]
