"""learning_coefficient: how degenerate is a language model's loss where its training ended?

The local learning coefficient (`sgld.py`) of the model's weights, on held-out text. Twice of it is
an effective number of parameters: as many as matter at the noise that n beta stands for.

The sampler's step decides: too large and chains diverge, too small and they do not leave the start
while they are watched. So several are tried, each with all chains, and every one gets a verdict
(`verdicts.py`). Drifting chains need more steps, or a stronger pull: they settle in about
2 / (step * gamma) steps. A model that is not trained to the end, or is measured on other text than
it was trained on, is no minimum of cross-entropy; loss=behaviour has its minimum at any model.
Chains have diverged also where the loss is worse than guessing.

Rows, one for each model and step size: model, train_step (-1: none), step, verdict, and unless it
diverged the coefficient with its 95 % interval over chains (Student's t), r_hat and rise; n_steps,
taken by each chain, or by the one that diverged. loss: at w*, in nats per token.

Arrays: trace/<model>/<step>, `[chains steps]`, the loss less that at w*, burn-in included.

Scalars: of the subject's model at the largest usable step (or else the largest that did not
diverge, with is_usable 0), coefficient and effective share, twice of it over n_parameters; n_beta,
n_data.

n beta: `n_beta`, or n / log n with n the number of predicted tokens behind the loss. devinterp
counts a batch's contexts for n, which gives a smaller one, and so another coefficient.

Source: Lau et al. 2023 (2308.12108); Bushnaq et al. 2024 (2405.10927), section 2.

Limits: all weights at once, embeddings too. A direction counts by its curvature h as
n beta h / (n beta h + gamma), so the coefficient is the effective number of parameters at a
cut-off, gamma / n beta (`cut_off`, in nats per squared weight), not the limit of the theory. With
the default pull it sees the steepest directions alone; a weaker one takes more steps.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from sae_kit.config import check_counts
from sae_kit.evals.base import Evaluation, Subject
from sae_kit.evals.loss_landscape.sgld import Diverged, Sampler, estimate, n_beta_of, sample
from sae_kit.evals.loss_landscape.verdicts import (
    DIVERGED,
    NO_MINIMUM,
    USABLE,
    Chains,
    check_chains,
)
from sae_kit.evals.loss_landscape.weight_loss import Kind, WeightLoss
from sae_kit.evals.shared.draws import generator_of
from sae_kit.evals.shared.model_variants import Variant, variants
from sae_kit.log import Progress
from sae_kit.result import Result

if TYPE_CHECKING:
    import matplotlib.figure

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class LearningCoefficient(Evaluation, name="learning_coefficient"):
    """The local learning coefficient of a language model, at several step sizes."""

    loss: Kind = "cross_entropy"
    """Or behaviour: see weight_loss.py."""
    models: tuple[str, ...] = ()
    """Others beside the subject's; a run of --config-name=language_model stands for its snapshots
    (model_variants.py)."""
    n_tokens: int = 8192
    """Of held-out text: the data behind the loss."""
    contexts_per_step: int = 1
    """Contexts behind a step's gradient."""
    steps: tuple[float, ...] = (3e-6, 1e-5, 3e-5)
    """Step sizes tried: variances of the noise of a step."""
    n_beta: float | None = None
    """Inverse temperature times the number of data; None: n / log n of the predicted tokens."""
    gamma: float = 20000.0
    """Pull towards the model's own weights."""
    n_chains: int = 3
    n_burn_in: int = 10
    """Steps of a chain before the first draw."""
    n_draws: int = 20
    """Of a chain, one a step."""
    max_r_hat: float = 1.2
    """Chains that agree less than this are called drifting."""

    def __post_init__(self) -> None:
        check_counts(self, "n_tokens", "contexts_per_step")
        if not self.steps or list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"steps: {list(self.steps)}; give increasing step sizes")
        check_chains(self.n_draws, self.max_r_hat)
        n_beta = 1.0 if self.n_beta is None else self.n_beta
        self._sampler(self.steps[0], n_beta)  # refuses what makes no sense

    def run(self, subject: Subject) -> Result:
        """See Evaluation.run: rows by model and step size, the subject's model first."""
        contexts = subject.contexts(self.n_tokens)
        own = Variant.own(subject)
        asked = [own, *variants(subject, self.models)]
        rows: list[dict[str, Any]] = []
        arrays: dict[str, Tensor] = {}
        n_data, n_parameters = 0, 0
        progress = Progress(len(asked) * len(self.steps) * self.n_chains, unit="chains")
        for variant in asked:
            loss = WeightLoss(
                variant.load(), contexts, kind=self.loss, batch=self.contexts_per_step
            )
            if variant is own:
                n_data, n_parameters = loss.n_data, len(loss.weights)
            for step in self.steps:
                found = self._chains(loss, step, subject, progress)
                about = {"model": variant.label, "train_step": variant.step, "step": step}
                rows.append({**about, **found.row(self.max_r_hat), "loss": loss.initial})
                if found.traces is not None:
                    arrays[f"trace/{variant.label}/{step:g}"] = found.traces - loss.initial
        progress.close()
        self._say(rows)
        best = _best([row for row in rows if row["model"] == own.label])
        return Result(
            name=self.word,
            scalars={
                "coefficient": best["coefficient"],
                "effective_share": 2 * best["coefficient"] / n_parameters,
                "step": best["step"],
                "is_usable": int(best["verdict"] == USABLE),
                "n_beta": self._n_beta(n_data),
                "cut_off": self.gamma / self._n_beta(n_data),
                "n_data": n_data,
                "n_parameters": n_parameters,
            },
            rows=tuple(rows),
            arrays=arrays,
            provenance=self.provenance(subject),
        )

    def _chains(
        self, loss: WeightLoss, step: float, subject: Subject, progress: Progress
    ) -> "Chains":
        """All chains of one step size, one after another: each takes the memory of a model."""
        sampler = self._sampler(step, self._n_beta(loss.n_data))
        # Worse than guessing is nowhere near a minimum, however few parameters have got there.
        guessing = math.log(subject.model.config.n_vocab)
        sampler = replace(sampler, max_rise=max(guessing - loss.initial, 1.0))
        traces = []
        for chain in range(self.n_chains):
            order = generator_of(subject.seed, "contexts", chain)
            noise = torch.Generator(loss.weights.device).manual_seed(
                generator_of(subject.seed, "noise", chain).initial_seed()
            )
            start = loss.weights[None]
            try:
                traces.append(sample(loss.of_chain(order), start, sampler, loss.initial, noise)[0])
            except Diverged as error:
                progress.update(self.n_chains - chain)
                return Chains(None, None, error.n_steps)
            progress.update(1)
        whole = torch.stack(traces).cpu()
        return Chains(whole, estimate(whole, sampler, loss.initial), whole.shape[1])

    def _sampler(self, step: float, n_beta: float) -> Sampler:
        return Sampler(
            n_beta=n_beta,
            step=step,
            gamma=self.gamma,
            n_chains=self.n_chains,
            n_burn_in=self.n_burn_in,
            n_draws=self.n_draws,
        )

    def _n_beta(self, n_data: int) -> float:
        return n_beta_of(n_data) if self.n_beta is None else self.n_beta

    def _say(self, rows: Sequence[dict[str, Any]]) -> None:
        """Refuse step sizes none of which has a result; warn of results that mean little."""
        for model in dict.fromkeys(row["model"] for row in rows):
            verdicts = {row["step"]: row["verdict"] for row in rows if row["model"] == model}
            if set(verdicts.values()) == {DIVERGED}:
                raise ValueError(
                    f"steps: the chains of {model} diverged at every one of {list(self.steps)}; "
                    f"give smaller ones, from {min(self.steps) / 100:g} on"
                )
            if NO_MINIMUM in verdicts.values():
                log.warning(
                    "%s is no minimum of this loss: chains found a lower one. Its estimates say "
                    "nothing about degeneracy; give eval.loss=behaviour, whose minimum it is",
                    model,
                )
            elif USABLE not in verdicts.values():
                log.warning(
                    "no step size is usable for %s (%s): give more steps, or others",
                    model,
                    ", ".join(f"{step:g} {verdict}" for step, verdict in verdicts.items()),
                )

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """See Evaluation.plot: `traces` of the subject's model, `steps` against the coefficient,
        `training` where there are snapshots.
        """
        from sae_kit.viz import chains

        return chains.figures(result)


def _best(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The largest usable step's row, or the largest's that did not diverge."""
    usable = [row for row in rows if row["verdict"] == USABLE]
    return (usable or [row for row in rows if row["verdict"] != DIVERGED])[-1]
