"""Activity: where the latents of SAEs are active in a text, as sparse matrices.

The text goes through the model once, and the codes of every SAE are kept on disk, piece by piece:
8 bytes for each active latent of each position. Afterwards any two sites can be held against one
another with only these two in memory, and an interrupted pass goes on where it stopped. The largest
activation of a latent, which a relative threshold needs, is found from the kept codes, so that no
second pass through the model is needed.

    recording = Recording.of(subject, passes, contexts, kept, contexts_per_pass=16)
    activity = Activity.of(recording.codes(site), Threshold(relative=0.2))

Memory of an Activity: 12 bytes for each active latent of each position, and up to 8 for the part of
them above the threshold (1 M positions with 50 active latents: 1 GB at most).

Limits: only activations above 0 are seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from sae_kit.data.activations import Passes
from sae_kit.evals.base import SAE_ROWS, Subject
from sae_kit.evals.shared.kept import Kept, Part
from sae_kit.log import Progress
from sae_kit.models.hooks import Site
from sae_kit.sae.code import SparseCode, firings

PIECE = 32_768  # tokens whose codes are one file a site


@final
@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A latent counts as active above both of these."""

    absolute: float = 0.0
    """In units of the activation."""
    relative: float = 0.0
    """As a share of the latent's largest activation in the text."""

    def __post_init__(self) -> None:
        if self.absolute < 0:
            raise ValueError(f"absolute: {self.absolute} is negative; give 0 or more")
        if not 0 <= self.relative < 1:
            raise ValueError(f"relative: {self.relative} is no share; give 0.2, say, or 0 for none")


@final
@dataclass(frozen=True, eq=False)  # eq: arrays have no single truth value to compare by
class Activity:
    """The activity of one SAE's latents at the positions of a text, and their sums over it."""

    codes: csr_array
    """[rows d_sae] float64, above 0 where a latent fires."""
    active: csr_array
    """[rows d_sae] int32, 1 where a latent is above its threshold."""
    n_firing: Int[Tensor, " d_sae"]
    """At how many positions a latent is above 0."""
    n_active: Int[Tensor, " d_sae"]
    """At how many it is above its threshold."""
    sum: Float[Tensor, " d_sae"]
    """Of activations; float64, as that of their squares."""
    sum_squares: Float[Tensor, " d_sae"]
    largest: Float[Tensor, " d_sae"]
    """0 for a latent that never fires."""

    @staticmethod
    def of(codes: csr_array, threshold: Threshold) -> "Activity":
        """That of some codes, `[rows d_sae]`, without entries of 0."""
        d_sae, latent = codes.shape[1], codes.indices
        values = codes.data.astype(np.float64)
        largest = np.zeros(d_sae)
        np.maximum.at(largest, latent, values)
        above = values > np.maximum(threshold.absolute, threshold.relative * largest)[latent]
        return Activity(
            codes=csr_array((values, latent, codes.indptr), shape=codes.shape),
            active=_selected(codes, above),
            n_firing=_counted(latent, d_sae),
            n_active=_counted(latent[above], d_sae),
            sum=_summed(latent, values, d_sae),
            sum_squares=_summed(latent, values**2, d_sae),
            largest=torch.from_numpy(largest),
        )

    @property
    def n_rows(self) -> int:
        """Positions of the text."""
        return self.codes.shape[0]

    @property
    def d_sae(self) -> int:
        """Latents of the SAE."""
        return self.codes.shape[1]

    def reordered(self, rows: Int[Tensor, " rows"]) -> "Activity":
        """The same with its positions in another order: what is left of two sites' agreement when
        one of them is reordered is chance.
        """
        order = rows.numpy()
        return Activity(
            self.codes[order],
            self.active[order],
            *(self.n_firing, self.n_active, self.sum, self.sum_squares, self.largest),
        )

    def first_rows(self) -> Int[Tensor, " d_sae"]:
        """The position at which each latent fires for the first time, -1 where it never does."""
        codes, first = self.codes, np.full(self.d_sae, self.n_rows)
        np.minimum.at(
            first, codes.indices, np.repeat(np.arange(self.n_rows), np.diff(codes.indptr))
        )
        return torch.from_numpy(np.where(first < self.n_rows, first, -1)).long()

    def canonical_order(self) -> Int[Tensor, " d_sae"]:
        """The latents in an order that does not depend on how they are numbered.

        By how often and how strongly they fire. What draws latents, or depends on the order of a
        graph's nodes, goes by it, so that permuting a dictionary changes no figure.
        """
        order = np.lexsort((self.sum_squares, self.sum, self.n_firing))
        return torch.from_numpy(order)


def _selected(codes: csr_array, chosen: Any) -> csr_array:
    """Ones at the chosen entries of a matrix."""
    before = np.concatenate([[0], np.cumsum(chosen, dtype=np.int64)])
    indices = codes.indices[chosen]
    ones = np.ones(len(indices), dtype=np.int32)
    return csr_array((ones, indices, before[codes.indptr]), shape=codes.shape)


def _counted(latent: Any, d_sae: int) -> Int[Tensor, " d_sae"]:
    return torch.from_numpy(np.bincount(latent, minlength=d_sae)).long()


def _summed(latent: Any, weights: Any, d_sae: int) -> Float[Tensor, " d_sae"]:
    # Without an entry, numpy's sums are whole numbers.
    return torch.from_numpy(np.bincount(latent, weights=weights, minlength=d_sae)).double()


# --- reading the text -----------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Recording:
    """The codes of some SAEs on a text, on disk."""

    d_sae: dict[Site, int]
    parts: dict[Site, Part]
    n_pieces: int

    @staticmethod
    def of(
        subject: Subject,
        passes: Passes,
        contexts: Int[Tensor, "batch pos"],
        kept: Kept,
        *,
        contexts_per_pass: int,
    ) -> "Recording":
        """Run the contexts through the model and encode the counting positions of every site.

        Pieces that are kept already are not run again.
        """
        sites = passes.sites
        pieces = contexts.split(max(1, PIECE // contexts.shape[1]))
        recording = Recording(
            d_sae={site: subject.saes[site].d_sae for site in sites},
            parts={site: kept.part(f"codes/{site}") for site in sites},
            n_pieces=len(pieces),
        )
        done = kept.part("codes_done")
        missing = [i for i in range(len(pieces)) if done.get(i) is None]
        n_missing = sum(pieces[i].numel() for i in missing)
        progress = Progress(contexts.numel(), done=contexts.numel() - n_missing)
        for i in missing:
            found: dict[Site, list[dict[str, Tensor]]] = {site: [] for site in sites}
            for tokens in pieces[i].split(contexts_per_pass):
                acts, _ = passes.rows(tokens.to(subject.device))
                for site in sites:
                    chunks = acts[site].split(SAE_ROWS)
                    found[site] += [_sparse(subject.saes[site].natural_code(x)) for x in chunks]
                progress.update(tokens.numel())
            for site, parts in found.items():
                recording.parts[site].put(i, _joined(parts))
            done.put(i, {"done": torch.ones(1)})
        progress.close()
        return recording

    def codes(self, site: Site) -> csr_array:
        """The codes at a site, `[rows d_sae]` float32, position after position.

        Raises:
            OSError: pieces on disk are gone.
        """
        pieces = [self.parts[site].get(i) for i in range(self.n_pieces)]
        there = [piece for piece in pieces if piece is not None]
        if len(there) < self.n_pieces:
            raise OSError(f"{self.parts[site].folder}: kept codes are gone; run again")
        return as_matrix(there, self.d_sae[site])


def as_matrix(pieces: Sequence[dict[str, Tensor]], d_sae: int) -> csr_array:
    """The matrix of kept pieces."""
    whole = _joined(pieces)
    ends = np.concatenate([[0], np.cumsum(whole["n_active"].numpy(), dtype=np.int64)])
    entries = (whole["values"].numpy(), whole["latents"].numpy(), ends)
    return csr_array(entries, shape=(len(ends) - 1, d_sae))


def _sparse(code: Float[Tensor, "rows d_sae"] | SparseCode) -> dict[str, Tensor]:
    """A code as its active latents, row after row."""
    row, latent, value = firings(code)
    n_rows = len(code.values if isinstance(code, SparseCode) else code)
    return {
        "n_active": row.bincount(minlength=n_rows).int().cpu(),
        "latents": latent.int().cpu(),
        "values": value.float().cpu(),
    }


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
