"""Atlas: what saved results say about the latents of some SAEs, found and checked.

A result of `dashboard` has what is known of each latent, one of `feature_evolution` how latents of
different sites go together. Either is enough for a site; both together must be of the same SAEs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.result import Result

DASHBOARD, EVOLUTION = "dashboard", "feature_evolution"
MEASURES = (
    "pearson",
    "cosine",
    "jaccard",
    "necessity",
    "sufficiency",
    "mutual_information",
    "decoder_cosine",
)


@final
@dataclass(frozen=True)
class Pair:
    """Latents of two sites that go together, with how much they do."""

    sites: tuple[int, int]
    """Their numbers in the atlas, the earlier site's first."""
    index: Int[Tensor, "n two"]
    """The earlier site's latent and the later one's."""
    n_both: Int[Tensor, " n"]
    """Positions at which both are active."""
    measures: Float[Tensor, "n measures"]


@final
@dataclass(frozen=True)
class Atlas:
    """What the results say, by site.

    Raises:
        ValueError: no result that a site can be made of, two of one kind, or results of different
            SAEs; or an array that is missing or does not fit.
    """

    results: Sequence[Result]

    def __post_init__(self) -> None:
        names = [result.name for result in self.results]
        for name in names:
            if name not in (DASHBOARD, EVOLUTION):
                raise ValueError(
                    f"results: one is of {name}, which the browser does not show; give results of "
                    f"{DASHBOARD} and {EVOLUTION}"
                )
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"results: got {names}; give one of {DASHBOARD} or {EVOLUTION}, or both"
            )
        _check_same_subject(self.results)

    @cached_property
    def dashboard(self) -> Result | None:
        """The result that knows each latent."""
        return next((one for one in self.results if one.name == DASHBOARD), None)

    @cached_property
    def evolution(self) -> Result | None:
        """The result that knows how latents go together."""
        return next((one for one in self.results if one.name == EVOLUTION), None)

    @cached_property
    def model(self) -> str:
        """The language model's name."""
        return self.results[0].provenance["subject"]["model"]

    @cached_property
    def saes(self) -> Mapping[str, Any]:
        """What the results say of the SAEs themselves, by site."""
        return max((one.provenance["subject"]["saes"] for one in self.results), key=len)

    @cached_property
    def sites(self) -> list[str]:
        """All sites, in the order of the model."""
        if self.dashboard is not None and len(self.dashboard.rows) == len(self.saes):
            return [row["site"] for row in self.dashboard.rows]
        return list(self.saes)

    @cached_property
    def d_sae(self) -> list[int]:
        """How many latents each site has."""
        return [len(self._first(f"n_active/{site}")) for site in self.sites]

    def n_active(self, site: int) -> Int[Tensor, " d_sae"]:
        """At how many positions each latent is active."""
        return self._first(f"n_active/{self.sites[site]}")

    def largest(self, site: int) -> Float[Tensor, " d_sae"]:
        """The largest activation of each latent."""
        return self._first(f"max/{self.sites[site]}")

    def community(self, site: int) -> Int[Tensor, " d_sae"]:
        """The community of each latent, -1 where it is in none."""
        return self._of_latents(self.evolution, "community", site, default=-1)

    def known(self, name: str, site: int) -> Tensor | None:
        """The dashboard's array of that name for a site, if there is one."""
        arrays = self.dashboard.arrays if self.dashboard is not None else {}
        return arrays.get(f"{name}/{self.sites[site]}")

    @cached_property
    def measures(self) -> list[str]:
        """The measures that pairs have."""
        if self.evolution is None:
            return []
        found = {key.rsplit("/", 1)[1] for key in self.evolution.arrays if key.startswith("pairs/")}
        return [name for name in MEASURES if name in found]

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every pair of sites whose latents were compared, the earliest first."""
        arrays = self.evolution.arrays if self.evolution is not None else {}
        names = [
            key.removeprefix("pairs/").removesuffix("/index")
            for key in arrays
            if key.startswith("pairs/") and key.endswith("/index")
        ]
        return sorted((self._pair(name) for name in names), key=lambda pair: pair.sites)

    @cached_property
    def booleans(self) -> list[tuple[int, int, Tensor]]:
        """Quasi-boolean candidates by pair of sites: up, down, and a row `[parent, parent, child,
        kind, strict]` for each; kind 0 is AND, 1 is OR.
        """
        arrays = self.evolution.arrays if self.evolution is not None else {}
        found = []
        for key, index in arrays.items():
            if key.startswith("boolean/") and key.endswith("/index"):
                name = key.removeprefix("boolean/").removesuffix("/index")
                up, down = self._numbers(name)
                self._check_range(key, index, [self.d_sae[up], self.d_sae[up], self.d_sae[down]])
                more = [arrays[f"boolean/{name}/{column}"].long() for column in ("kind", "strict")]
                found.append((up, down, torch.cat([index, torch.stack(more, 1)], 1)))
        return sorted(found, key=lambda one: one[:2])

    def _pair(self, name: str) -> Pair:
        assert self.evolution is not None
        arrays, sites = self.evolution.arrays, self._numbers(name)
        index = arrays[f"pairs/{name}/index"]
        self._check_range(f"pairs/{name}/index", index, [self.d_sae[site] for site in sites])
        columns = {}
        for column in ("n_both", *self.measures):
            values = arrays.get(f"pairs/{name}/{column}")
            if values is None or values.shape != index.shape[:1]:
                raise ValueError(
                    f"pairs/{name}/{column}: is missing or not as long as the index; the result is "
                    "damaged, run the evaluation again"
                )
            columns[column] = values
        n_both = columns.pop("n_both")
        return Pair(sites, index, n_both, torch.stack(list(columns.values()), 1).float())

    def _numbers(self, name: str) -> tuple[int, int]:
        """The numbers of the two sites in a pair's name, "up>down"."""
        up, _, down = name.partition(">")
        if up not in self.sites or down not in self.sites:
            raise ValueError(f"pairs: {name!r} is no pair of the sites {self.sites}")
        return self.sites.index(up), self.sites.index(down)

    def _check_range(self, name: str, index: Tensor, sizes: Sequence[int]) -> None:
        if index.ndim != 2 or index.shape[1] != len(sizes):
            raise ValueError(f"{name}: shape is {tuple(index.shape)}, not [n, {len(sizes)}]")
        outside = (index < 0) | (index >= torch.tensor(sizes))
        if outside.any():
            row = int(outside.any(1).nonzero()[0])
            raise ValueError(
                f"{name}: row {row} is {index[row].tolist()}, but the SAEs have {list(sizes)} "
                "latents; the result is damaged, run the evaluation again"
            )

    def _first(self, name: str) -> Tensor:
        """An array that both kinds of result have, of the first that has it."""
        for result in (self.dashboard, self.evolution):
            if result is not None and name in result.arrays:
                return result.arrays[name]
        raise ValueError(f"{name}: in none of the results; run the evaluation again")

    def _of_latents(self, result: Result | None, name: str, site: int, default: int) -> Tensor:
        values = None if result is None else result.arrays.get(f"{name}/{self.sites[site]}")
        return torch.full((self.d_sae[site],), default) if values is None else values


def _check_same_subject(results: Sequence[Result]) -> None:
    """See Atlas."""
    first, *others = results
    own = first.provenance["subject"]
    for other in others:
        subject = other.provenance["subject"]
        for name in ("model", "revision", "centre_writing_weights"):
            if own.get(name) != subject.get(name):
                raise ValueError(
                    f"results: {name} is {own.get(name)} in {first.name} and {subject.get(name)} "
                    f"in {other.name}; give results of one subject"
                )
        small, large = sorted((own["saes"], subject["saes"]), key=len)
        if missing := sorted(set(small) - set(large)):
            raise ValueError(
                f"results: {first.name} and {other.name} have different sites (only one has "
                f"{', '.join(missing)}); give results of one subject"
            )
        for site, sae in small.items():
            if sae != large[site]:
                raise ValueError(
                    f"results: the SAEs at {site} differ between {first.name} and {other.name}; "
                    "give results of one subject"
                )
