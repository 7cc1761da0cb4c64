"""What a perturbation does: measures of a perturbed outcome against the clean one.

Every response is 0 where nothing is perturbed, except the logit difference. Divergences are of the
next-token distributions at the perturbed position, KL(clean || perturbed), in nats.

Limits: computed in float32 (float64 if the model is); below about 1e-6 a KL is rounding.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.models.hooks import Site

LOGIT_VALUES = 1 << 22
"""Logits compared at once, so that differences and exponentials stay small beside the logits."""


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Outcome:
    """What the model made of some activations at the same positions."""

    acts: Mapping[Site, Float[Tensor, "hosts points pos width"]]
    """Later activations, by site."""
    logits: Float[Tensor, "hosts points pos vocab"] | None
    """None where nobody asked for them."""

    def predictions(self) -> Float[Tensor, "hosts points pos vocab"]:
        """The logits, which a response asked for."""
        assert self.logits is not None
        return self.logits


class Response(ABC):
    """A number for every perturbed activation."""

    name: str
    """In tables and files."""
    sites: frozenset[Site] = frozenset()
    """Whose activations it compares."""
    needs_logits: bool = False

    @abstractmethod
    def __call__(self, clean: Outcome, perturbed: Outcome) -> Float[Tensor, "hosts points pos"]:
        """Measure; `clean` has one point."""


@final
class L2(Response):
    """The distance of a later activation from the clean one, in its own units."""

    name = "l2"

    def __init__(self, site: Site) -> None:
        self.site, self.sites = site, frozenset({site})

    def __call__(self, clean: Outcome, perturbed: Outcome) -> Float[Tensor, "hosts points pos"]:
        """See Response."""
        return (wide(perturbed.acts[self.site]) - wide(clean.acts[self.site])).norm(dim=-1)


@final
class KL(Response):
    """KL(clean || perturbed) in nats."""

    name = "kl"
    needs_logits = True

    def __call__(self, clean: Outcome, perturbed: Outcome) -> Float[Tensor, "hosts points pos"]:
        """See Response. sum p (l - m) + logsumexp(m) - logsumexp(l): exactly 0 where m is l."""
        own = wide(clean.predictions())
        p, normaliser = own.softmax(-1), own.logsumexp(-1)
        return torch.cat(
            [
                torch.linalg.vecdot(p, own - m) + (m.logsumexp(-1) - normaliser)
                for m in pieces(perturbed.predictions())
            ],
            1,
        )


@final
class JensenShannon(Response):
    """The Jensen-Shannon distance: the root of the base-2 divergence; from 0 to 1."""

    name = "js"
    needs_logits = True

    def __call__(self, clean: Outcome, perturbed: Outcome) -> Float[Tensor, "hosts points pos"]:
        """See Response."""
        log_p = wide(clean.predictions()).log_softmax(-1)
        p = log_p.exp()
        parts = []
        for m in pieces(perturbed.predictions()):
            # With d = log q - log p, the mean distribution is p (1 + e^d) / 2, and exactly p where
            # d is 0. Beyond 80 e^d could overflow, and p is nothing.
            d = (m.log_softmax(-1) - log_p).clamp(max=80.0)
            log_mean = (d.expm1() / 2).log1p()
            q = m.softmax(-1)
            parts.append(torch.linalg.vecdot(q, d - log_mean) - torch.linalg.vecdot(p, log_mean))
        # Twice the divergence, in nats; rounding can leave it just below 0.
        return (torch.cat(parts, 1).clamp(min=0) / (2 * math.log(2))).sqrt()


@final
class CEIncrease(Response):
    """How much -log p of the token that comes next grows, in nats.

    Args:
        targets: the next tokens of the perturbed positions.
    """

    name = "delta_ce"
    needs_logits = True

    def __init__(self, targets: Int[Tensor, "hosts pos"]) -> None:
        self._targets = targets[:, None, :, None]

    def __call__(self, clean: Outcome, perturbed: Outcome) -> Float[Tensor, "hosts points pos"]:
        """See Response."""
        own = wide(clean.predictions())
        loss = own.logsumexp(-1) - self._target(own)
        return torch.cat(
            [m.logsumexp(-1) - self._target(m) - loss for m in pieces(perturbed.predictions())], 1
        )

    def _target(self, logits: Tensor) -> Tensor:
        hosts, points, pos, _ = logits.shape
        return logits.gather(-1, self._targets.expand(hosts, points, pos, 1))[..., 0]


@final
class LogitDifference(Response):
    """The logit of one token less that of another, of the perturbed run itself.

    Args:
        first, second: token ids.
    """

    name = "logit_difference"
    needs_logits = True

    def __init__(self, first: Int[Tensor, "hosts pos"], second: Int[Tensor, "hosts pos"]) -> None:
        self._tokens = torch.stack([first, second], -1)[:, None]

    def __call__(self, clean: Outcome, perturbed: Outcome) -> Float[Tensor, "hosts points pos"]:
        """See Response."""
        logits = perturbed.predictions()
        tokens = self._tokens.expand(*logits.shape[:-1], 2)
        first, second = wide(logits.gather(-1, tokens)).unbind(-1)
        return first - second


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pieces(logits: Float[Tensor, "hosts points pos vocab"]) -> Iterator[Tensor]:
    """Some points at a time, in float32 at least."""
    hosts, _, pos, vocab = logits.shape
    n = max(1, LOGIT_VALUES // (hosts * pos * vocab))
    return (wide(part) for part in logits.split(n, dim=1))
