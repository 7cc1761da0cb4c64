"""How right predictions are: the metrics of circuit analysis, all of one set of logits.

With l the logits at the last position of a prompt, p their softmax, and p_clean that of the clean
prompt in the model as it is:

- logit_difference: log of the answers' probability over that of the wrong tokens, in nats. With one
  of each it is the difference of two logits, which is linear in the last residual stream but for
  its normalisation: the metric to explore with. It does not see changes that raise both.
- log_prob: log of the answers' probability, in nats.
- prob: the answers' probability. Where it is near 0 or 1, it hides much.
- prob_difference: the answers' probability less that of the wrong tokens (greater-than's metric).
- rank: how many tokens are likelier than the likeliest answer. A threshold: small effects are lost.
- kl: KL(p_clean || p), in nats: whatever changed, right or wrong. 0 for the clean predictions.

Source: Heimersheim and Nanda 2024 (2404.15255), section 4, for what each is good for; several
answers (greater-than) count by their summed probability.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.config import nearest
from sae_kit.data.pairs import Pairs
from sae_kit.maths import Predictions, kl_rows


@final
class Tokens:
    """Some tokens of the vocabulary for each pair, for sums over them alone."""

    def __init__(self, mask: Bool[Tensor, "pairs vocab"]) -> None:
        most = int(mask.sum(1).max())
        # Pairs with fewer tokens than that are padded with others.
        self._ids = mask.int().topk(most).indices.sort(1).values
        self._padding = ~mask.gather(1, self._ids)

    def of(self, logits: Float[Tensor, "pairs vocab"]) -> Float[Tensor, "pairs tokens"]:
        """Their logits; -inf stands for none."""
        return logits.gather(1, self._ids).masked_fill(self._padding, -torch.inf)


@final
class Answers:
    """What the predictions behind some pairs are compared with."""

    def __init__(self, pairs: Pairs, clean: Float[Tensor, "pairs vocab"]) -> None:
        """`clean`: the logits behind the clean prompts in the model as it is."""
        self.right, self.wrong = Tokens(pairs.answers), Tokens(pairs.wrong)
        self.clean = Predictions(clean)

    def read(self, logits: Float[Tensor, "pairs vocab"]) -> "Reading":
        """The predictions in the light of these answers; differentiable but for rank."""
        return Reading(self, logits)


@final
class Reading:
    """One set of predictions, and what the metrics share of it."""

    def __init__(self, answers: Answers, logits: Float[Tensor, "pairs vocab"]) -> None:
        self.answers = answers
        self.logits = logits.to(torch.promote_types(logits.dtype, torch.float32))

    @cached_property
    def right(self) -> Float[Tensor, " pairs"]:
        """logsumexp of the answers' logits."""
        return self.answers.right.of(self.logits).logsumexp(-1)

    @cached_property
    def wrong(self) -> Float[Tensor, " pairs"]:
        """logsumexp of the wrong tokens' logits."""
        return self.answers.wrong.of(self.logits).logsumexp(-1)

    @cached_property
    def every(self) -> Float[Tensor, " pairs"]:
        """logsumexp of all logits."""
        return self.logits.logsumexp(-1)

    def metric(self, name: str) -> Float[Tensor, " pairs"]:
        """One of `METRICS`."""
        return METRICS[name].of(self)

    def metrics(self) -> Float[Tensor, "metrics pairs"]:
        """All of `METRICS`, in their order."""
        return torch.stack([metric.of(self) for metric in METRICS.values()])


@final
@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number for each pair."""

    label: str
    """For an axis, with the unit."""
    of: Callable[[Reading], Float[Tensor, " pairs"]]
    has_gradient: bool = True


def _rank(reading: Reading) -> Tensor:
    best = reading.answers.right.of(reading.logits).amax(-1, keepdim=True)
    return (reading.logits > best).sum(-1).to(reading.logits.dtype)


METRICS: dict[str, Metric] = {
    "logit_difference": Metric(label="logit difference (nats)", of=lambda r: r.right - r.wrong),
    "log_prob": Metric(label="log probability (nats)", of=lambda r: r.right - r.every),
    "prob": Metric(label="probability", of=lambda r: (r.right - r.every).exp()),
    "prob_difference": Metric(
        label="probability difference",
        of=lambda r: (r.right - r.every).exp() - (r.wrong - r.every).exp(),
    ),
    "rank": Metric(label="rank (0: likeliest)", of=_rank, has_gradient=False),
    "kl": Metric(label="KL to clean (nats)", of=lambda r: kl_rows(r.answers.clean, r.logits)),
}
"""By name, in the order of `Reading.metrics`."""


def check_metric(name: str) -> None:
    """Refuse a metric that does not exist, or by whose gradient nothing can be ranked.

    Raises:
        ValueError: names the nearest metrics.
    """
    able = [known for known, metric in METRICS.items() if metric.has_gradient]
    if name not in METRICS:
        raise ValueError(
            f"metric: {name!r} is unknown; give {' or '.join(nearest(name, able) or able)}"
        )
    if name not in able:
        raise ValueError(
            f"metric: {name} has no gradient, and is measured anyway; give one of {', '.join(able)}"
        )


def check_varies(
    name: str, clean: Float[Tensor, " pairs"], corrupt: Float[Tensor, " pairs"]
) -> None:
    """Refuse pairs whose corruption leaves a metric as it is: nothing could be recovered.

    Args:
        name: the metric.
        clean: its values on the clean prompts.
        corrupt: its values on the corrupted ones.

    Raises:
        ValueError: the means differ by less than a millionth.
    """
    a, b = clean.double().mean().item(), corrupt.double().mean().item()
    if abs(a - b) <= 1e-6 * max(1.0, abs(a), abs(b)):
        raise ValueError(
            f"metric: {name} is {a:.4g} on the clean and {b:.4g} on the corrupted prompts, so "
            "there is nothing to recover; give pairs whose corruption changes the answer, or "
            "another metric"
        )
