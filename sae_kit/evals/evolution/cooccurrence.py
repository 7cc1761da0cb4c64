"""Co-occurrence: how much latents of two sites go together in a text, by seven measures.

With a and b the activations of an upstream and a downstream latent at n positions, and A and B the
positions at which each is active (above its threshold, see activity.py):

- pearson: correlation of a and b.
- cosine: sum ab / sqrt(sum a^2 sum b^2), not centred.
- jaccard: |A and B| / |A or B|.
- necessity: |A and B| / |B|: how often the upstream latent is there when the downstream one is.
- sufficiency: |A and B| / |A|: how often the downstream one is there when the upstream one is.
- mutual_information: of the two yes-or-no variables, in nats.
- decoder_cosine: of their decoder rows; knows nothing of the text.

Jaccard, necessity and sufficiency hang together: 1/J = 1/S + 1/N - 1. Where one is not defined
(a latent that never fires, or always does the same) it is 0.

Source: Balcells et al. 2024 (2410.08869), "Evolution of SAE features across layers".

Two dictionaries of 24,576 latents have 600 million pairs, and seven measures of each are 17 GB in
float32. They are computed for some upstream latents at a time, by as many threads as torch has: how
often and how strongly latents are active together, as sparse products summed in float64, then the
measures of those pairs that were seen together often enough. Of each block only those pairs stay
that may still be among the matches (`Keep`). Memory is that of the two activities twice over (some
50 bytes for each active latent of each position), of what is kept (40 bytes a pair), and 40 bytes
for each of the BLOCK pairs of a thread. The result depends on neither blocks nor threads.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from sae_kit.evals.evolution.activity import Activity
from sae_kit.log import Progress
from sae_kit.sorting import lexsort, rank_in_group

COUNTED = ("pearson", "cosine", "jaccard", "necessity", "sufficiency", "mutual_information")
"""Measures of a text."""
MEASURES = (*COUNTED, "decoder_cosine")
BLOCK = 1 << 22  # pairs that a thread has in matrices at once
N_BINS = 50
RANGES = dict.fromkeys(MEASURES, (0.0, 1.0)) | {
    "pearson": (-1.0, 1.0),
    "decoder_cosine": (-1.0, 1.0),
    "mutual_information": (0.0, 0.7),
}
"""What histograms of the measures reach over; mutual information is at most log 2."""


@final
@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which pairs are kept: for each latent its best matches by every measure, and all that are as
    good as `least` by one of them.
    """

    n_top: int = 4
    """Matches of each latent, by every measure, on either side."""
    measure: str = "pearson"
    least: float = 0.1
    """Every pair is kept that `measure` puts at this or above."""
    n_both: int = 10
    """Positions at which both latents have to be active; measures of the text are 0 below."""


@final
@dataclass(frozen=True, eq=False)
class Pairs:
    """Some pairs of latents of two sites, sorted by the upstream latent, then the other."""

    index: Int[Tensor, "n two"]
    """Upstream latent, downstream latent."""
    n_both: Int[Tensor, " n"]
    """Positions at which both are active."""
    measures: dict[str, Float[Tensor, " n"]]
    """Every one of MEASURES, float64."""
    histograms: dict[str, Int[Tensor, " bins"]]
    """Of all pairs that are active together often enough, kept or not, over RANGES."""


@final
@dataclass(frozen=True, eq=False)
class Sums:
    """What the measures need of single latents: sums over `n` positions."""

    n: int
    n_active: Float[Tensor, "*latents"]
    sum: Float[Tensor, "*latents"]
    squares: Float[Tensor, "*latents"]

    @staticmethod
    def of(activity: Activity) -> "Sums":
        return Sums(activity.n_rows, activity.n_active.double(), activity.sum, activity.sum_squares)

    def at(self, latents: Any) -> "Sums":
        """Those of some latents, by any index."""
        return Sums(self.n, self.n_active[latents], self.sum[latents], self.squares[latents])


def counted_measures(
    up: Sums,
    down: Sums,
    n_both: Float[Tensor, "*pairs"],
    dot: Float[Tensor, "*pairs"],
) -> dict[str, Float[Tensor, "*pairs"]]:
    """The measures of COUNTED, in float64.

    Args:
        up: of the upstream latents, in a shape that broadcasts against the pairs'.
        down: of the downstream latents, likewise.
        n_both: positions at which both are active.
        dot: sum of the products of their activations.
    """
    n, a, b = up.n, up.n_active, down.n_active
    spread = (_spread(up) * _spread(down)).sqrt()
    return {
        "pearson": _ratio(n * dot - up.sum * down.sum, spread).clamp(-1, 1),
        "cosine": _ratio(dot, (up.squares * down.squares).sqrt()).clamp(0, 1),
        "jaccard": _ratio(n_both, a + b - n_both),
        "necessity": _ratio(n_both, b.expand_as(n_both)),
        "sufficiency": _ratio(n_both, a.expand_as(n_both)),
        "mutual_information": _mutual_information(n, a, b, n_both),
    }


def _spread(one: Sums) -> Tensor:
    """n^2 times the variance; exactly 0 for a latent that always does the same."""
    whole = one.n * one.squares
    spread = whole - one.sum.square()
    return spread.where(spread > 1e-12 * whole, 0.0)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, 0.0)


def _mutual_information(n: int, a: Tensor, b: Tensor, both: Tensor) -> Tensor:
    """H(A) + H(B) - H(A, B), of how often each is active and both are."""
    cells = (both, a - both, b - both, n - a - b + both)
    joint = sum((_surprise(cell / n) for cell in cells), torch.zeros_like(both))
    single = sum(_surprise(x / n) + _surprise(1 - x / n) for x in (a, b))
    return (single - joint).clamp_min(0)


def _surprise(p: Tensor) -> Tensor:
    """-p log p."""
    return -torch.xlogy(p, p)


# --- all pairs of two sites -----------------------------------------------------------------------


def compare(
    up: Activity,
    down: Activity,
    decoders: tuple[Float[Tensor, "d_up width"], Float[Tensor, "d_down width"]],
    keep: Keep,
    progress: Progress | None = None,
) -> Pairs:
    """The pairs that are kept of two sites' latents.

    Args:
        up: of the upstream site.
        down: of the downstream site, at the same positions.
        decoders: decoder rows of both, of any norm.
        keep: which pairs.
        progress: moved on by one for every upstream latent.
    """
    survey = _Survey(up, down, decoders, keep)
    found: list[_Candidates] = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for latents, own in pool.map(survey.block, survey.blocks()):
            found.append(own)
            if progress is not None:
                progress.update(latents.stop - latents.start)
    return survey.kept(_Candidates.joined(found))


@final
@dataclass(frozen=True, eq=False)
class _Candidates:
    """Pairs that may be kept, and the three numbers that their measures follow from."""

    up: Int[Tensor, " n"]
    down: Int[Tensor, " n"]
    n_both: Float[Tensor, " n"]
    dot: Float[Tensor, " n"]
    decoder_cosine: Float[Tensor, " n"]

    @staticmethod
    def joined(parts: list["_Candidates"]) -> "_Candidates":
        return _Candidates(
            *(torch.cat(column) for column in zip(*map(_columns, parts), strict=True))
        )

    def at(self, rows: Tensor) -> "_Candidates":
        return _Candidates(*(column[rows] for column in _columns(self)))


def _columns(one: _Candidates) -> tuple[Tensor, ...]:
    return one.up, one.down, one.n_both, one.dot, one.decoder_cosine


@final
class _Survey:
    """Goes through the pairs of two sites, some upstream latents at a time."""

    def __init__(
        self, up: Activity, down: Activity, decoders: tuple[Tensor, Tensor], keep: Keep
    ) -> None:
        self.keep = keep
        self._up, self._down = Sums.of(up), Sums.of(down)
        # By upstream latent, so that a block is some rows of them.
        self._codes = up.codes.T.tocsr(), down.codes
        self._active = up.active.T.tocsr(), down.active
        self._decoders = [F.normalize(rows.detach().float().cpu(), dim=1) for rows in decoders]
        self._floors = {name: _Floor(down.d_sae, keep.n_top) for name in MEASURES}
        self._lock = Lock()
        self.histograms = {name: torch.zeros(N_BINS, dtype=torch.int64) for name in MEASURES}

    def blocks(self) -> Iterator[slice]:
        """The upstream latents, some at a time."""
        n_up, n_down = self._up.sum.shape[0], self._down.sum.shape[0]
        size = max(1, BLOCK // n_down)
        for start in range(0, n_up, size):
            yield slice(start, min(start + size, n_up))

    def block(self, latents: slice) -> tuple[slice, _Candidates]:
        """What may be kept of the pairs of these upstream latents with all downstream ones."""
        n_both, dot = _product(self._active, latents), _product(self._codes, latents)
        cosine = (self._decoders[0][latents] @ self._decoders[1].T).clamp_(-1, 1)
        counted = (n_both.flatten() >= self.keep.n_both).nonzero().flatten()
        row, column = counted // n_both.shape[1], counted % n_both.shape[1]
        up, down = self._up.at(latents.start + row), self._down.at(column)
        own = (n_both.flatten()[counted], dot.flatten()[counted])
        # float32 keeps the order of float64, and ties that it makes are candidates all the same.
        values = {name: x.float() for name, x in counted_measures(up, down, *own).items()}
        self._count(values, cosine.flatten()[counted])
        chosen = self._hopeful("decoder_cosine", cosine)
        matrix = torch.zeros_like(cosine)
        for name, found in values.items():
            matrix.view(-1)[counted] = found
            chosen |= self._hopeful(name, matrix)
        rows, columns = chosen.nonzero(as_tuple=True)
        return latents, _Candidates(
            *(rows + latents.start, columns),
            *(n_both[chosen], dot[chosen], cosine[chosen].double()),
        )

    def _count(self, values: Mapping[str, Tensor], cosine: Tensor) -> None:
        """Add pairs to the histograms."""
        for name, own in {**values, "decoder_cosine": cosine}.items():
            counts = torch.histc(own, N_BINS, *RANGES[name]).long()
            with self._lock:
                self.histograms[name] += counts

    def _hopeful(self, name: str, values: Float[Tensor, "up down"]) -> Bool[Tensor, "up down"]:
        """Pairs among the best of their upstream latent, or of their downstream one so far, or
        above the clamp.
        """
        n_top = min(self.keep.n_top, values.shape[1])
        own = values.topk(n_top, dim=1).values[:, -1:]
        floor = self._floors[name].after(values)
        hopeful = (values >= torch.minimum(own, floor)) & (values > 0)
        return hopeful | (values >= self.keep.least) if name == self.keep.measure else hopeful

    def kept(self, found: _Candidates) -> Pairs:
        """The matches among the candidates, exactly."""
        up, down = self._up.at(found.up), self._down.at(found.down)
        measures = self._measures(up, down, found.n_both, found.dot, found.decoder_cosine)
        chosen = measures[self.keep.measure] >= self.keep.least
        # Of equals, pairs of which more was seen come first.
        found_most = lexsort(-found.n_both, -found.dot)
        for values in measures.values():
            for latents in (found.up, found.down):
                chosen |= _best(latents, values, found_most, self.keep.n_top)
        rows = chosen.nonzero().flatten()
        rows = rows[lexsort(found.up[rows], found.down[rows])]
        return Pairs(
            index=torch.stack([found.up[rows], found.down[rows]], 1),
            n_both=found.n_both[rows].long(),
            measures={name: values[rows] for name, values in measures.items()},
            histograms=self.histograms,
        )

    def _measures(
        self, up: Sums, down: Sums, n_both: Tensor, dot: Tensor, cosine: Tensor
    ) -> dict[str, Tensor]:
        """All measures; those of the text count where enough was seen."""
        counts = n_both >= self.keep.n_both
        counted = counted_measures(up, down, n_both, dot)
        own = {name: values.where(counts, 0.0) for name, values in counted.items()}
        return {**own, "decoder_cosine": cosine}


@final
class _Floor:
    """For every downstream latent, how good its n-th best match by one measure is so far."""

    def __init__(self, n_latents: int, n_top: int) -> None:
        self._best = torch.zeros(n_top, n_latents)
        self._lock = Lock()

    def after(self, values: Float[Tensor, "up down"]) -> Float[Tensor, " down"]:
        """Take in the matches of some more upstream latents, and say how good it is now."""
        with self._lock:
            rows, latents = (values > self._best[-1]).nonzero(as_tuple=True)
            own = values[rows, latents]
            order = lexsort(latents, -own)
            rank = rank_in_group(latents[order])
            first = rank < len(self._best)
            fresh = torch.zeros_like(self._best)
            fresh[rank[first], latents[order][first]] = own[order][first]
            both = torch.cat([self._best, fresh])
            self._best = both.topk(len(self._best), dim=0).values
            return self._best[-1]


def _best(
    latents: Int[Tensor, " n"], values: Float[Tensor, " n"], order: Int[Tensor, " n"], n: int
) -> Bool[Tensor, " n"]:
    """Which pairs are among the n best of their latent, above 0; of equals the first by `order`."""
    order = order[lexsort(latents[order], -values[order])]
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[order] = (rank_in_group(latents[order]) < n) & (values[order] > 0)
    return chosen


def _product(matrices: tuple[csr_array, csr_array], latents: slice) -> Float[Tensor, "up down"]:
    """Sums over positions of the products of some upstream latents with every downstream one."""
    up, down = matrices
    return torch.from_numpy((up[latents] @ down).toarray()).double()
