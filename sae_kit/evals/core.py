"""core: how well SAEs reconstruct, how sparsely, and what their error does to the model.

Two passes over held-out text. The first takes `n_tokens` tokens once through the model, captures
every site, and measures the SAEs as functions of vectors. The second takes `n_splice_tokens` of the
same tokens, and for each site replaces the activations by the reconstruction, by zero and by the
mean, and runs the model on from there.

A transcoder reads one site and writes another: it is measured against the activations of the site
that it writes, which is also where it is spliced in and which is ablated.

Only positions that count are measured and replaced: by default all but position 0 and the
end-of-text tokens, as in training. The others keep the model's own activations, in the ablations
too. Cross-entropy and KL are means over the counting positions that have a next token.

The columns:

- site: the site that the SAE reads; its row in the model's order.
- l0: mean number of active latents.
- fvu: sum of squared errors over the sum of squared deviations from the site's mean (one mean over
  all rows; channels summed, not averaged).
- cosine: mean cosine of activation and reconstruction.
- norm_ratio: mean norm of the reconstructions over the mean norm of the activations; below 1 is
  shrinkage.
- dead_fraction: share of latents that fired nowhere in the first pass. It depends on `n_tokens`.
- dense_fraction: share of latents that fired at more than 10 % of the positions.
- ce_clean, ce_spliced, ce_zero, ce_mean: next-token cross-entropy of the model as it is, and with
  the activations replaced by the reconstruction, by zero, by the site's mean over the first pass.
- ce_recovered: (ce_zero - ce_spliced) / (ce_zero - ce_clean). In the residual stream zero is so bad
  a baseline that this is close to 1 for any SAE: read delta_ce and kl as well.
- delta_ce: ce_spliced - ce_clean.
- kl: KL(clean || spliced) of the next-token distributions.
- ce_recovered_mean: as ce_recovered, with the mean as the baseline.
- writes: the site reconstructed; `site` again, unless the SAE is a transcoder.
- *_low, *_high: 95 % bootstrap intervals over contexts; for fvu with the variance held fixed.

Cross-entropies and KL are in nats per token.

Limits: log-probabilities are float32, so a KL below 1e-6 is noise.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.data.activations import LiveConfig, Passes
from sae_kit.evals.base import SAE_ROWS, Evaluation, Subject
from sae_kit.log import Progress
from sae_kit.maths import Predictions, StreamingMoments, bootstrap_interval, cosine_rows
from sae_kit.models.hooks import Site
from sae_kit.models.splice import CleanRun, flat_logits
from sae_kit.result import Result
from sae_kit.sae.base import SAE
from sae_kit.sae.code import SparseCode

if TYPE_CHECKING:
    import matplotlib.figure

DENSE = 0.1  # a latent that fires at a greater share of the positions is called dense
AVERAGED = ("l0", "fvu", "ce_recovered", "delta_ce", "kl", "dead_fraction")

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class Core(Evaluation, name="core"):
    """Reconstruction, sparsity and downstream effect of every SAE."""

    n_tokens: int = 131_072
    """Held-out tokens for the statistics of codes and reconstructions."""
    n_splice_tokens: int = 16_384
    """Tokens, of the same, for cross-entropies and KL: each costs three partial runs per site."""
    contexts_per_pass: int = 16
    """Contexts in one model pass for the statistics."""
    drop_first_position: bool = True
    """Whether position 0 of every context is neither measured nor replaced."""
    drop_special_tokens: bool = True
    """Whether end-of-text tokens are neither measured nor replaced."""

    def __post_init__(self) -> None:
        for name in ("n_tokens", "n_splice_tokens", "contexts_per_pass"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")
        if self.n_splice_tokens > self.n_tokens:
            raise ValueError(
                f"n_splice_tokens: {self.n_splice_tokens} is more than n_tokens={self.n_tokens}, "
                "of which they are a part"
            )

    @torch.no_grad()
    def run(self, subject: Subject) -> Result:
        """See Evaluation.run: one row per site, in the order of the model."""
        subject.check_saes()
        order = [site for site in subject.model.sites() if site in subject.saes]
        spots = [Spot(site, subject.writes[site], subject.saes[site]) for site in order]
        self._compare_with_training(subject.saes)
        contexts = subject.contexts(self.n_tokens)
        spliced = contexts[: -(-self.n_splice_tokens // contexts.shape[1])]
        reading = LiveConfig(
            drop_first_position=self.drop_first_position,
            drop_special_tokens=self.drop_special_tokens,
        )
        special_ids = [subject.language_model.tokenizer.eot_id]
        sites = dict.fromkeys(site for spot in spots for site in (spot.reads, spot.writes))
        passes = Passes(reading, subject.model, list(sites), special_ids)
        if not passes.counting(spliced)[:, :-1].any():
            raise ValueError(
                f"tokens: none of the {spliced.numel()} tokens read counts; set eval."
                "drop_first_position and eval.drop_special_tokens to false, or read other text"
            )
        progress = Progress(contexts.numel() + spliced.numel() * len(spots))
        statistics = self._statistics(passes, spots, contexts, progress)
        means = {site: found.moments.mean for site, found in statistics.items()}
        effects = _effects(subject, passes, spots, means, spliced, progress)
        progress.close()
        rows = tuple(
            _row(spot, statistics[spot.reads], effects[spot.reads], seed=subject.seed)
            for spot in spots
        )
        return Result(
            name=self.word,
            scalars={
                "n_tokens": contexts.numel(),
                "n_splice_tokens": spliced.numel(),
                "ce_clean": rows[0]["ce_clean"],
                **{f"mean_{key}": sum(row[key] for row in rows) / len(rows) for key in AVERAGED},
            },
            rows=rows,
            arrays={
                **{f"frequency/{site}": found.frequency() for site, found in statistics.items()},
                **{f"mean/{site}": mean.cpu() for site, mean in means.items()},
            },
            provenance=self.provenance(subject),
        )

    def _statistics(
        self,
        passes: Passes,
        spots: Sequence["Spot"],
        contexts: Int[Tensor, "batch pos"],
        progress: Progress,
    ) -> dict[Site, "Statistics"]:
        """The first pass: every site's vectors, codes and reconstructions."""
        device = passes.model.device
        found = {spot.reads: Statistics(spot.sae, len(contexts), device) for spot in spots}
        for i, tokens in enumerate(contexts.split(self.contexts_per_pass)):
            acts, local = passes.rows(tokens.to(device))
            context = local + i * self.contexts_per_pass
            for spot in spots:
                found[spot.reads].update(acts[spot.reads], acts[spot.writes], context)
            progress.update(tokens.numel())
        return found

    def _compare_with_training(self, saes: Mapping[Site, SAE]) -> None:
        """Warn where an SAE was trained on other positions than it is measured on."""
        for name in ("drop_first_position", "drop_special_tokens"):
            own = getattr(self, name)
            others = [site for site, sae in saes.items() if sae.metadata.get(name, own) != own]
            if others:
                log.warning(
                    "%s=%s, but the SAEs at %s were trained with %s", name, own, others, not own
                )

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """See Evaluation.plot: `quality` by site, and `frequency`, how often latents fire."""
        from sae_kit.viz import plots

        frequencies = {
            row["site"]: result.arrays[f"frequency/{row['site']}"] for row in result.rows
        }
        title = f"SAEs in {result.provenance['subject']['model']}, on held-out text"
        panels = [
            plots.Panel("FVU", {"FVU": "fvu"}),
            plots.Panel("L0 (active latents)", {"L0": "l0"}),
            plots.Panel(
                "share of CE recovered",
                {"from zero ablation": "ce_recovered", "from mean ablation": "ce_recovered_mean"},
                baseline=1.0,
            ),
            plots.Panel(
                "nats per token", {"CE increase": "delta_ce", "KL(clean || spliced)": "kl"}
            ),
        ]
        tokens = f"{result.scalars['n_tokens']:,} tokens"
        quality = f"{title} (95 % intervals over contexts)"
        frequency = f"How often latents fire ({tokens}): {title}"
        return {
            "quality": plots.by_site(result.rows, panels, title=quality),
            "frequency": plots.firing_frequencies(frequencies, dense=DENSE, title=frequency),
        }


@final
@dataclass(frozen=True)
class Spot:
    """An SAE in its place."""

    reads: Site
    writes: Site
    """Where its output belongs: `reads` itself, unless it is a transcoder."""
    sae: SAE


# --- the first pass: vectors ----------------------------------------------------------------------


@final
class Statistics:
    """Sums over the rows of one site and its SAE."""

    def __init__(self, sae: SAE, n_contexts: int, device: torch.device) -> None:
        self.sae = sae
        self.moments = StreamingMoments(sae.d_out, device=device)
        self.n_fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
        # Sums over rows, by context: what intervals are made of.
        self.n_rows = torch.zeros(n_contexts, dtype=torch.float64, device=device)
        self.l0 = torch.zeros(n_contexts, dtype=torch.float64, device=device)
        self.squared_error = torch.zeros(n_contexts, dtype=torch.float64, device=device)
        self.cosine, self.norm, self.recon_norm = torch.zeros(3, dtype=torch.float64, device=device)

    def update(
        self,
        read: Float[Tensor, "rows d_in"],
        written: Float[Tensor, "rows d_out"],
        context: Int[Tensor, " rows"],
    ) -> None:
        """Take in what the SAE reads and what it is to write in the rows of some contexts, and
        which context each belongs to.
        """
        self.moments.update(written)
        self.n_rows += context.bincount(minlength=len(self.n_rows))
        chunks = (rows.split(SAE_ROWS) for rows in (read, written, context))
        for x, target, where in zip(*chunks, strict=True):
            code = self.sae.natural_code(x)
            recon = self.sae.reconstruct(x, code)
            l0, n_fired = _count(code)
            self.n_fired += n_fired
            self.l0.index_add_(0, where, l0.double())
            self.squared_error.index_add_(0, where, (target - recon).double().square().sum(-1))
            self.cosine += cosine_rows(target, recon).double().sum()
            self.norm += target.norm(dim=-1).double().sum()
            self.recon_norm += recon.norm(dim=-1).double().sum()

    def frequency(self) -> Float[Tensor, " d_sae"]:
        """The share of rows at which each latent fired."""
        return (self.n_fired.double() / self.moments.count).cpu()


def _count(
    code: Float[Tensor, "rows d_sae"] | SparseCode,
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " d_sae"]]:
    """Active latents of each row, and active rows of each latent."""
    if isinstance(code, SparseCode):
        return code.l0(), torch.bincount(code.indices[code.values != 0], minlength=code.d_sae)
    active = code != 0
    return active.sum(-1), active.sum(0)


# --- the second pass: effects on the model --------------------------------------------------------


@final
@dataclass(frozen=True)
class Effects:
    """Sums by context, over the counting positions with a next token, for one site."""

    n_positions: Float[Tensor, " contexts"]
    ce_clean: Float[Tensor, " contexts"]
    ce_spliced: Float[Tensor, " contexts"]
    ce_zero: Float[Tensor, " contexts"]
    ce_mean: Float[Tensor, " contexts"]
    kl: Float[Tensor, " contexts"]


def _effects(
    subject: Subject,
    passes: Passes,
    spots: Sequence[Spot],
    means: Mapping[Site, Tensor],
    contexts: Int[Tensor, "batch pos"],
    progress: Progress,
) -> dict[Site, Effects]:
    """Run the model on with the activations at every site written replaced."""
    parts: dict[Site, list[tuple[Tensor, ...]]] = {spot.reads: [] for spot in spots}
    for tokens in contexts.split(subject.contexts_per_pass(contexts.shape[1])):
        tokens = tokens.to(subject.device)
        counts = passes.counting(tokens)
        scored = Scored(tokens, counts)
        clean = CleanRun(subject.model, tokens, counts, capture=passes.sites)
        ce_clean = scored.cross_entropy(clean.predictions)
        for spot in spots:
            rows = clean.select(clean.acts[spot.reads]).float()
            recon = torch.cat([spot.sae(x) for x in rows.split(SAE_ROWS)])
            mean = means[spot.reads]
            spliced, zero, to_mean = (
                Predictions(flat_logits(clean.spliced(spot.writes, stand_in)))
                for stand_in in (recon, torch.zeros_like(mean), mean)
            )
            ce = [scored.cross_entropy(one) for one in (spliced, zero, to_mean)]
            kl = scored.by_context(clean.predictions.kl(spliced))
            parts[spot.reads].append((scored.n_positions, ce_clean, *ce, kl))
            progress.update(tokens.numel())
    return {
        site: Effects(*(torch.cat(column) for column in zip(*rows, strict=True)))
        for site, rows in parts.items()
    }


@final
class Scored:
    """Which positions of some contexts are scored: those that count and have a next token."""

    def __init__(self, tokens: Int[Tensor, "batch pos"], counts: Bool[Tensor, "batch pos"]) -> None:
        self.mask = counts.clone()
        self.mask[:, -1] = False
        # Behind the last token comes nothing; what stands there is not scored.
        self.targets = tokens.roll(-1, dims=1).flatten()
        self.n_positions = self.mask.sum(1).double()
        """How many positions are scored, by context."""

    def by_context(self, values: Float[Tensor, " positions"]) -> Float[Tensor, " batch"]:
        """The sum of each context over its scored positions, float64; `values` has them all."""
        return values.double().view(self.mask.shape).where(self.mask, 0.0).sum(1)

    def cross_entropy(self, predictions: Predictions) -> Float[Tensor, " batch"]:
        """In nats, summed by context."""
        return self.by_context(predictions.cross_entropy(self.targets))


# --- the table ------------------------------------------------------------------------------------


def _row(spot: Spot, statistics: Statistics, effects: Effects, *, seed: int) -> dict[str, Any]:
    """A site's row; see the module's docstring for the columns."""
    n_rows, n_positions = statistics.moments.count, effects.n_positions.sum()
    frequency = statistics.frequency()
    variance = statistics.moments.total_deviation() / n_rows
    ce_clean, ce_spliced, ce_zero, ce_mean = (
        (sums.sum() / n_positions).item()
        for sums in (effects.ce_clean, effects.ce_spliced, effects.ce_zero, effects.ce_mean)
    )
    by_context = {
        "l0": _by_context(statistics.l0, statistics.n_rows),
        "fvu": _by_context(statistics.squared_error, statistics.n_rows) / variance,
        "kl": _by_context(effects.kl, effects.n_positions),
        "delta_ce": _by_context(effects.ce_spliced - effects.ce_clean, effects.n_positions),
    }
    intervals = {name: bootstrap_interval(v, seed=seed) for name, v in by_context.items()}
    return {
        "site": spot.reads,
        "l0": intervals["l0"].estimate,
        "fvu": intervals["fvu"].estimate,
        "cosine": (statistics.cosine / n_rows).item(),
        "norm_ratio": (statistics.recon_norm / statistics.norm).item(),
        "dead_fraction": (frequency == 0).double().mean().item(),
        "dense_fraction": (frequency > DENSE).double().mean().item(),
        "ce_clean": ce_clean,
        "ce_spliced": ce_spliced,
        "ce_zero": ce_zero,
        "ce_mean": ce_mean,
        "ce_recovered": _recovered(ce_clean, ce_spliced, ce_zero),
        "delta_ce": intervals["delta_ce"].estimate,
        "kl": intervals["kl"].estimate,
        "ce_recovered_mean": _recovered(ce_clean, ce_spliced, ce_mean),
        "writes": spot.writes,
        **{
            f"{name}_{side}": getattr(interval, side)
            for name, interval in intervals.items()
            for side in ("low", "high")
        },
    }


def _by_context(
    sums: Float[Tensor, " contexts"], n_rows: Float[Tensor, " contexts"]
) -> Float[Tensor, " contexts"]:
    """One value per context for the mean over all rows, which is their mean.

    Contexts have different numbers of rows, so the mean of the contexts' means is another number,
    and sums would vary with the number of rows alone. These are the linearised contributions to
    the ratio (sum of sums) / (sum of rows).
    """
    mean = sums.sum() / n_rows.sum()
    return mean + (sums - mean * n_rows) * len(sums) / n_rows.sum()


def _recovered(clean: float, spliced: float, ablated: float) -> float:
    """The share of an ablation's damage that the SAE avoids; NaN if there is none."""
    return (ablated - spliced) / (ablated - clean) if ablated != clean else math.nan
