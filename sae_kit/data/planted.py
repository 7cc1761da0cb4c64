"""Planted dictionaries: rows made of known features, so that what an SAE finds can be checked.

    x = b + sum_i f_i d_i + sigma n

with unit directions d_i, codes f_i >= 0 that are mostly zero, and standard normal n. Whether a
feature fires in a row is drawn so that its frequency p_i is exact, whatever else holds:

- Frequencies of features without a parent fall as rank^-s (Zipf), scaled until the expected L0,
  the sum of all p_i, is `mean_active`.
- Correlation: those features lie in groups of 8, drawn at random. Each has a normal variable, the
  groups' with the same correlation, and fires where that is below the p_i quantile (a one-factor
  Gaussian copula).
- Hierarchy: a child fires only where its parent fires, and there with `child_probability`; so its
  frequency is the product. Parents are spread evenly over the ranks, have up to 4 children each,
  and no parents of their own.

A firing feature has the value 1 + spread |n|, n standard normal: never so small that it could not
be seen. Directions are random unit vectors, those of children too.

Sources: the setting is that of Sharkey et al. 2022 ("Taking features out of superposition with
sparse autoencoders") and Bricken et al. 2023 (toy models); children as in Chanin et al.
2409.14507, section 3. The copula with its groups is our choice of a correlation that leaves
frequencies alone.

Limits: correlations are positive and within a group; one level of hierarchy; features are linear.
Rows are drawn on the CPU, at some hundred thousand a second for 512 features.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.config import check_counts
from sae_kit.data.activations import ActivationSource, Batch
from sae_kit.dist import World
from sae_kit.models.hooks import Site

PLANTED: Site = "planted"
"""The one site of a planted source."""
GROUP_SIZE = 8
CHILDREN_PER_PARENT = 4
BLOCK_ROWS = 1024
"""Rows drawn from one generator; what a stream is addressed by."""
N_SCALE_ROWS = 8 * BLOCK_ROWS
SPLITS = ("train", "heldout")


@final
@dataclass(frozen=True, kw_only=True)
class PlantedConfig:
    """A dictionary and how its features fire."""

    d_in: int = 256
    """Width of a row."""
    n_features: int = 1024
    """Features in the dictionary."""
    mean_active: float = 16.0
    """Features that fire in a row, on average: the true L0."""
    zipf_exponent: float = 0.5
    """How fast frequencies fall with the rank; 0 = all alike."""
    correlation: float = 0.3
    """Between the normal variables of a group, in [0, 1); 0 = features fire independently."""
    hierarchy: float = 0.25
    """Share of the features that have a parent, at most 0.8."""
    child_probability: float = 0.3
    """How often a child fires where its parent does."""
    spread: float = 0.5
    """How far the values of a firing feature vary above 1: the scale of a half-normal."""
    noise: float = 0.05
    """Standard deviation of the noise, per channel."""
    offset: float = 1.0
    """Norm of the constant b."""
    seed: int = 0
    """Draws directions, groups and b."""

    def __post_init__(self) -> None:
        check_counts(self, "d_in", "n_features")
        for name in ("zipf_exponent", "spread", "noise", "offset", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: value is {getattr(self, name)}; give 0 or more")
        if not 0 <= self.correlation < 1:
            raise ValueError(
                f"correlation: value is {self.correlation}; give at least 0 and less than 1"
            )
        most = CHILDREN_PER_PARENT / (CHILDREN_PER_PARENT + 1)
        if not 0 <= self.hierarchy <= most:
            raise ValueError(
                f"hierarchy: value is {self.hierarchy}; give 0 to {most}, so that every child "
                f"finds a parent with at most {CHILDREN_PER_PARENT}"
            )
        if not 0 < self.child_probability <= 1:
            raise ValueError(
                f"child_probability: value is {self.child_probability}; give more than 0, at most 1"
            )
        if not self.mean_active > 0:
            raise ValueError(f"mean_active: value is {self.mean_active}; give more than 0")
        if not (top := float(_frequencies(self, _parents(self)).max())) < 1:
            raise ValueError(
                f"mean_active: value is {self.mean_active}, for which the commonest feature would "
                f"have to fire {top:.3g} times a row; give less than {self.mean_active / top:.3g}, "
                "more n_features or a lower zipf_exponent"
            )


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class PlantedRows:
    """Rows, and what they are made of."""

    x: Float[Tensor, "rows d_in"]
    codes: Float[Tensor, "rows n_features"]
    """The true code; zero where a feature does not fire."""


@final
@dataclass(frozen=True, eq=False)
class PlantedDictionary:
    """The truth: what a config stands for, the same for the same config."""

    config: PlantedConfig
    directions: Float[Tensor, "n_features d_in"]
    """Of norm 1."""
    frequencies: Float[Tensor, " n_features"]
    """The probability that each feature fires in a row; float64."""
    parents: Int[Tensor, " n_features"]
    """The number of each feature's parent, -1 where it has none. Children come last."""
    groups: Int[Tensor, " n_roots"]
    """The number of the group that each feature without a parent lies in."""
    bias: Float[Tensor, " d_in"]

    @staticmethod
    def build(config: PlantedConfig) -> "PlantedDictionary":
        """Draw the dictionary."""
        generator = _generator("dictionary", config.seed)
        directions = _unit_rows(config.n_features, config.d_in, generator)
        bias = config.offset * _unit_rows(1, config.d_in, generator)[0]
        parents = _parents(config)
        n_roots = int((parents < 0).sum())
        groups = torch.randperm(n_roots, generator=generator) // GROUP_SIZE
        frequencies = _frequencies(config, parents)
        return PlantedDictionary(config, directions, frequencies, parents, groups, bias)

    def draw(self, n_rows: int, generator: torch.Generator) -> PlantedRows:
        """Independent rows."""
        c = self.config
        fires = self._fires(n_rows, generator)
        codes = torch.zeros(fires.shape)
        n_active = int(fires.sum())
        codes[fires] = 1 + c.spread * torch.randn(n_active, generator=generator).abs()
        x = self.reconstruct(codes)
        return PlantedRows(x + c.noise * torch.randn(x.shape, generator=generator), codes)

    def reconstruct(self, codes: Float[Tensor, "rows n_features"]) -> Float[Tensor, "rows d_in"]:
        """Rows without noise."""
        return codes @ self.directions + self.bias

    def _fires(self, n_rows: int, generator: torch.Generator) -> Bool[Tensor, "rows n_features"]:
        rho, n_roots = self.config.correlation, len(self.groups)
        # Beyond float32's precision is beyond any sample.
        threshold = torch.special.ndtri(self.frequencies[:n_roots]).float()
        shared = torch.randn(n_rows, int(self.groups.max()) + 1, generator=generator)
        own = torch.randn(n_rows, n_roots, generator=generator)
        roots = math.sqrt(rho) * shared[:, self.groups] + math.sqrt(1 - rho) * own < threshold
        parents = self.parents[n_roots:]
        may = torch.rand(n_rows, len(parents), generator=generator) < self.config.child_probability
        return torch.cat([roots, roots[:, parents] & may], dim=1)


@final
class PlantedStream:
    """Endless rows of a dictionary, each with a number; the same for the same seed."""

    def __init__(self, dictionary: PlantedDictionary, *, split: str, seed: int):
        """Args:
        dictionary: the truth.
        split: train or heldout, which have no row in common.
        seed: draws the rows.
        """
        assert split in SPLITS
        self.dictionary, self.split, self.seed = dictionary, split, seed
        self._latest: tuple[int, PlantedRows] | None = None

    def rows(self, start: int, n_rows: int) -> PlantedRows:
        """The rows of numbers `start` to `start + n_rows`, the end excluded."""
        first, last = start // BLOCK_ROWS, (start + n_rows - 1) // BLOCK_ROWS
        blocks = [self._block(number) for number in range(first, last + 1)]
        part = slice(start - first * BLOCK_ROWS, start - first * BLOCK_ROWS + n_rows)
        return PlantedRows(
            torch.cat([block.x for block in blocks])[part],
            torch.cat([block.codes for block in blocks])[part],
        )

    def _block(self, number: int) -> PlantedRows:
        # A batch may end inside a block, where the next begins.
        if self._latest is None or self._latest[0] != number:
            generator = _generator(self.split, self.seed, number)
            self._latest = number, self.dictionary.draw(BLOCK_ROWS, generator)
        return self._latest[1]


@final
class PlantedSource(ActivationSource):
    """Planted rows as training batches; the position is the number of rows seen.

    Of several processes, each takes its own part of every batch: `size` of them with `batch_rows`
    rows each see together what one process with `size * batch_rows` sees, and the position counts
    the rows of all.
    """

    drop_first_position = False
    drop_special_tokens = False

    def __init__(
        self,
        dictionary: PlantedDictionary,
        *,
        batch_rows: int,
        seed: int,
        world: World,
        device: torch.device,
    ):
        """Args:
        dictionary: the truth.
        batch_rows: rows per batch and process.
        seed: draws the rows.
        world: which process this is, of how many.
        device: where batches are to lie.
        """
        self.stream = PlantedStream(dictionary, split="train", seed=seed)
        self.widths = {PLANTED: dictionary.config.d_in}
        self.scales: dict[Site, float] = {}
        self.batch_rows, self.world, self.device = batch_rows, world, device
        self._position = 0

    def prepare(self) -> None:
        """Scale to a mean norm of sqrt(d_in) over the first 8,192 rows."""
        if not self.scales:
            norm = self.stream.rows(0, N_SCALE_ROWS).x.norm(dim=-1).mean(dtype=torch.float64)
            self.scales = {PLANTED: math.sqrt(self.widths[PLANTED]) / norm.item()}

    def sample(self, site: Site, n_rows: int) -> Float[Tensor, "rows _"]:
        """The first rows of all."""
        self.prepare()
        return self._scaled(0, n_rows)

    def __next__(self) -> Batch:
        """This process's part of the next rows."""
        self.prepare()
        start = self._position + self.world.rank * self.batch_rows
        self._position += self.world.size * self.batch_rows
        return Batch({PLANTED: self._scaled(start, self.batch_rows)}, n_contexts=self.batch_rows)

    def _scaled(self, start: int, n_rows: int) -> Tensor:
        return (self.stream.rows(start, n_rows).x * self.scales[PLANTED]).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """The number of rows seen, by all processes."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, as if never stopped."""
        self.prepare()
        self._position = state["position"]


def _parents(config: PlantedConfig) -> Int[Tensor, " n_features"]:
    """Each feature's parent or -1; children are the last of the features."""
    n_children = round(config.hierarchy * config.n_features)
    n_roots = config.n_features - n_children
    n_parents = -(-n_children // CHILDREN_PER_PARENT)
    parent = torch.arange(n_children) // CHILDREN_PER_PARENT * n_roots // max(1, n_parents)
    return torch.cat([torch.full((n_roots,), -1), parent])


def _frequencies(
    config: PlantedConfig, parents: Int[Tensor, " n_features"]
) -> Float[Tensor, " n_features"]:
    """Zipf over the ranks of features without a parent, scaled so that all sum to mean_active."""
    is_root = parents < 0
    zipf = torch.arange(1, int(is_root.sum()) + 1).double() ** -config.zipf_exponent
    children = config.child_probability * zipf[parents[~is_root]]
    weights = torch.cat([zipf, children])
    return config.mean_active * weights / weights.sum()


def _unit_rows(n: int, width: int, generator: torch.Generator) -> Float[Tensor, "n width"]:
    rows = torch.randn(n, width, generator=generator)
    return rows / rows.norm(dim=-1, keepdim=True)


def _generator(*key: str | int) -> torch.Generator:
    """One of its own for every key."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
