"""Recovery: does an SAE find the features that rows were made of?

On held-out rows of a planted dictionary (`sae_kit.data.planted`), whose features are known:

mcc, mcc_weighted   decoder rows are matched one to one with true directions so that the sum of
                    their cosines is largest (the assignment problem, scipy's solver); the mean
                    cosine over all features, and weighted by how often each fires. A cosine below
                    0, and a feature that finds no latent, count as 0
found               share of features with a matched cosine above 0.9
uniqueness          distinct nearest latents of all features, relative to the number of features
precision, recall   of "the matched latent is active" for "the feature fires", and F1; means over
f1, f1_micro        the features that fire in the sample, and of the counts of all together
absorption          of the rows in which a parent fires with a child of its: the share in which the
                    parent's latent is silent, but another is active that points along the parent
                    (a cosine above `carried_cosine`); `parent_missed` is the share in which
                    none does. Only where features have parents
dead_fraction       latents active in no row
l0, true_l0         active latents, and firing features, in a row
fvu, fvu_truth      the error of the SAE, and of the truth itself, which cannot know the noise

Sources: the matching is that of nonlinear ICA's mean correlation coefficient (Hyvarinen and Morioka
2016, 1605.06336), with directions in the place of signals. Absorption is that of Chanin et al.
2409.14507; their detector (a probe, an ablation, a cosine above 0.025) gives way to the truth.

Limits: one latent is credited per feature: one split among several counts with one of them. By
chance, directions in few dimensions point along each other: in 48, one in fifty above 0.3.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.data.planted import PLANTED, PlantedDictionary, PlantedRows, PlantedStream
from sae_kit.evals.base import Evaluation, PlantedSubject
from sae_kit.result import Result

if TYPE_CHECKING:
    import matplotlib.figure

CHUNK = 4096  # rows whose codes are matrices at once
FOUND = 0.9


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Matching:
    """Which latent stands for which feature."""

    latents: Int[Tensor, " n_features"]
    """-1: none."""
    cosines: Float[Tensor, " n_features"]
    """At least 0; 0 without a latent."""


def match(cosines: Float[Tensor, "n_features d_sae"]) -> Matching:
    """The one-to-one matching with the largest sum; negative cosines count as 0."""
    from scipy.optimize import linear_sum_assignment

    cosines = cosines.clamp_min(0)
    features, latents = map(
        torch.from_numpy, linear_sum_assignment(cosines.double().numpy(), maximize=True)
    )
    matching = Matching(torch.full((len(cosines),), -1), cosines.new_zeros(len(cosines)))
    matching.latents[features] = latents
    matching.cosines[features] = cosines[features, latents]
    return matching


@final
@dataclass(frozen=True, kw_only=True)
class Recovery(Evaluation, name="recovery"):
    """What an SAE made of known features."""

    n_rows: int = 32_768
    """Held-out rows."""
    carried_cosine: float = 0.3
    """Above this cosine, a latent carries a parent's direction."""

    subject_type: ClassVar[type] = PlantedSubject

    def __post_init__(self) -> None:
        if self.n_rows < 1:
            raise ValueError(f"n_rows: value is {self.n_rows}; give 1 or more")
        if not 0 < self.carried_cosine < 1:
            raise ValueError(f"carried_cosine: value is {self.carried_cosine}; give 0.3, say")

    @torch.no_grad()
    def run(self, subject: PlantedSubject) -> Result:
        """See Evaluation.run: one row."""
        subject.check_saes()
        sae, truth = subject.saes[PLANTED], PlantedDictionary.build(subject.planted)
        stream = PlantedStream(truth, split="heldout", seed=subject.seed)
        tally = Tally(truth, sae.W_dec.detach().cpu(), carried_cosine=self.carried_cosine)
        for start in range(0, self.n_rows, CHUNK):
            rows = stream.rows(start, min(CHUNK, self.n_rows - start))
            code = sae.encode(rows.x.to(subject.device))
            tally.update(rows, code.cpu(), sae.decode(code).cpu())
        summary = tally.summary()
        return Result(
            name=self.word,
            scalars={"n_rows": self.n_rows, "mean_mcc": summary["mcc"]},
            rows=({"site": PLANTED, **summary},),
            arrays={
                f"latent/{PLANTED}": tally.matching.latents,
                f"cosine/{PLANTED}": tally.matching.cosines,
                f"f1/{PLANTED}": tally.f1().float(),
                f"frequency/{PLANTED}": truth.frequencies.float(),
                f"parent/{PLANTED}": truth.parents,
            },
            provenance=self.provenance(subject),
        )

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """Cosine and F1 of every feature by how often it fires."""
        from sae_kit.viz.scatter import Cloud, clouds

        (row,), of = result.rows, {key.split("/")[0]: a for key, a in result.arrays.items()}
        kinds = {"without a parent": of["parent"] < 0, "with a parent": of["parent"] >= 0}
        figures = {}
        for name, array, label, title in (
            ("directions", "cosine", "cosine with the matched latent", f"MCC {row['mcc']:.3f}"),
            ("firing", "f1", "F1 of the matched latent", f"mean F1 {row['f1']:.3f}"),
        ):
            figures[name] = clouds(
                [
                    Cloud(kind, of["frequency"][own], of[array][own])
                    for kind, own in kinds.items()
                    if own.any()
                ],
                x="frequency of the feature (share of rows)",
                y=label,
                title=f"Planted features recovered: {title}",
            )
        return figures


@final
class Tally:
    """Counts over rows and their codes, and what follows from them."""

    def __init__(
        self,
        truth: PlantedDictionary,
        W_dec: Float[Tensor, "d_sae width"],
        *,
        carried_cosine: float,
    ) -> None:
        """Match the directions; rows of `W_dec` may have any norm, a zero row points nowhere.

        Raises:
            ValueError: the directions are not as wide as the rows.
        """
        n, d_in = truth.directions.shape
        if W_dec.shape[1] != d_in:
            raise ValueError(
                f"W_dec: width is {W_dec.shape[1]}; give directions of the rows' width, {d_in}"
            )
        norms = torch.linalg.vector_norm(W_dec, dim=1, keepdim=True)
        cosines = truth.directions @ (W_dec / norms.clamp_min(1e-12)).T
        self.truth, self.matching = truth, match(cosines)
        self._nearest = cosines.argmax(1)
        self.n_rows = 0
        self._fires, self._active, self._both = torch.zeros(3, n, dtype=torch.int64)
        self._latent = torch.zeros(len(W_dec), dtype=torch.int64)
        self._error, self._noise, self._squares = torch.zeros(3, dtype=torch.float64)
        self._sum = torch.zeros(d_in, dtype=torch.float64)
        self._n_families = self._n_absorbed = self._n_missed = 0
        parents = truth.parents[truth.parents >= 0].unique().tolist()
        self._families = [
            (p, (truth.parents == p).nonzero().flatten(), cosines[p] > carried_cosine)
            for p in parents
        ]

    def update(
        self,
        rows: PlantedRows,
        code: Float[Tensor, "rows d_sae"],
        recon: Float[Tensor, "rows d_in"],
    ) -> None:
        """Take in some rows with their codes and reconstructions."""
        fires, active = rows.codes > 0, code > 0
        latents = self.matching.latents
        own = active[:, latents.clamp_min(0)] & (latents >= 0)
        self.n_rows += len(code)
        self._fires += fires.sum(0)
        self._active += own.sum(0)
        self._both += (fires & own).sum(0)
        self._latent += active.sum(0)
        x = rows.x.double()
        self._error += (recon - x).square().sum()
        self._noise += (self.truth.reconstruct(rows.codes) - x).square().sum()
        self._squares += x.square().sum()
        self._sum += x.sum(0)
        for parent, children, carries in self._families:
            together = fires[:, children].any(1)  # a child fires only where its parent does
            silent = together & ~own[:, parent]
            carried = active[:, carries].any(1)
            self._n_families += int(together.sum())
            self._n_absorbed += int((silent & carried).sum())
            self._n_missed += int((silent & ~carried).sum())

    def f1(self) -> Float[Tensor, " n_features"]:
        """By feature; 0 where neither it nor its latent is ever active."""
        return 2 * self._both / (self._active + self._fires).clamp_min(1)

    def summary(self) -> dict[str, float]:
        """The measures of the module's docstring, by name."""
        fires, cosines = self._fires > 0, self.matching.cosines
        weights = self.truth.frequencies / self.truth.frequencies.sum()
        both = int(self._both.sum())
        total = float(self._squares - self._sum.square().sum() / self.n_rows)
        found = {
            "mcc": float(cosines.mean()),
            "mcc_weighted": float((cosines * weights).sum()),
            "found": float((cosines > FOUND).double().mean()),
            "uniqueness": len(self._nearest.unique()) / len(cosines),
            "precision": float((self._both / self._active.clamp_min(1))[fires].mean()),
            "recall": float((self._both / self._fires.clamp_min(1))[fires].mean()),
            "f1": float(self.f1()[fires].mean()),
            "f1_micro": 2 * both / int((self._active + self._fires).sum()),
            "dead_fraction": float((self._latent == 0).double().mean()),
            "l0": int(self._latent.sum()) / self.n_rows,
            "true_l0": int(self._fires.sum()) / self.n_rows,
            "fvu": float(self._error) / total,
            "fvu_truth": float(self._noise) / total,
        }
        if not self._families:
            return found
        n = max(self._n_families, 1)
        return {**found, "absorption": self._n_absorbed / n, "parent_missed": self._n_missed / n}
