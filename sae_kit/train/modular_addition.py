"""Trains the transformer that adds modulo a prime, on some of all pairs, until it can do the rest.

Full batches, AdamW. Weight decay makes the network leave the answers it has learnt by heart for a
rule ("grokking"), which takes longer the smaller the part is that it sees.

Source: Nanda et al. 2023 (2301.05217); sizes, learning rate and part as in Bushnaq et al. 2024
(2405.10928).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.config import check_counts
from sae_kit.models.modular_addition import AdditionConfig, AdditionTransformer, all_pairs
from sae_kit.state import State
from sae_kit.train.loop import LoopPlan, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class AdditionTraining:
    """How to train; the defaults are those for prime 113. Configured by conf/addition/."""

    model: AdditionConfig = field(default_factory=AdditionConfig)
    train_fraction: float = 0.3
    """Of all pairs."""
    n_steps: int = 60_000
    """At most."""
    lr: float = 1e-3
    weight_decay: float = 1.0
    n_warmup_steps: int = 10
    margin: float = 1e-3
    """Training ends where the mean loss on held-out pairs is below this (nats); 0: never."""
    log_every: int = 100
    """Steps after which the held-out pairs are asked."""
    checkpoint_every: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "n_steps", "n_warmup_steps", "log_every", "checkpoint_every")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr: {self.lr} is not positive and finite; give 0.001, say")
        for name in ("weight_decay", "margin"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name}: {value} is negative or not finite; give 0 or more")
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed} is negative; give 0 or more")
        if not 0 < self.train_fraction < 1 or not 0 < self.n_train < self.model.prime**2:
            raise ValueError(
                f"train_fraction: {self.train_fraction} of {self.model.prime**2} pairs; give a "
                "share between 0 and 1 that leaves some to train on and some to hold out"
            )

    @property
    def n_train(self) -> int:
        """Pairs that are trained on."""
        return round(self.train_fraction * self.model.prime**2)


@final
class AdditionTask:
    """What the training loop drives: a `sae_kit.train.loop.Task`.

    Attributes:
        model: the network.
        train: the pairs it sees, `[n 2]`.
        heldout: the others, `[m 2]`.
    """

    def __init__(self, config: AdditionTraining) -> None:
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        self.model = AdditionTransformer(config.model, generator=generator)
        pairs = all_pairs(config.model.prime)
        pairs = pairs[torch.randperm(len(pairs), generator=generator)]
        self.train, self.heldout = pairs.tensor_split([config.n_train])
        self.n_tokens_per_step = 3 * config.n_train  # two numbers and the sign
        self._heldout_loss = float("inf")
        self._optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
        )

    def plan(self) -> LoopPlan:
        """When the loop logs, saves and ends."""
        return LoopPlan(
            n_steps=self.config.n_steps,
            log_every=self.config.log_every,
            checkpoint_every=self.config.checkpoint_every,
            n_checkpoints=1,
            shown=("loss", "heldout_loss"),
            remedy="lower addition.lr",
            ended=self.ended,
        )

    def ended(self) -> bool:
        """Whether the held-out pairs are done well enough."""
        return self._heldout_loss < self.config.margin

    def step(self, step: int, *, measure: bool) -> Metrics:
        """See Task."""
        for group in self._optimiser.param_groups:
            group["lr"] = self.config.lr * min(1.0, (step + 1) / self.config.n_warmup_steps)
        self._optimiser.zero_grad()
        loss = loss_on(self.model, self.train)
        loss.backward()
        self._optimiser.step()
        if not measure:
            return {"loss": loss.detach()}
        with torch.no_grad():
            self._heldout_loss = loss_on(self.model, self.heldout).item()
        return {"loss": loss.item(), "heldout_loss": self._heldout_loss}

    def state_dict(self) -> State:
        """See Task."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "heldout_loss": self._heldout_loss,
        }

    def load_parts(self, parts: Sequence[State]) -> None:
        """See Task."""
        (saved,) = parts
        self.model.load_state_dict(saved["model"])
        self._optimiser.load_state_dict(saved["optimiser"])
        self._heldout_loss = saved["heldout_loss"]


def loss_on(model: AdditionTransformer, pairs: Int[Tensor, "n two"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the sums, in nats."""
    return F.cross_entropy(model(pairs), pairs.sum(1) % model.config.prime)


@torch.no_grad()
def accuracy_on(model: AdditionTransformer, pairs: Int[Tensor, "n two"]) -> float:
    """The share of pairs whose sum has the largest logit."""
    return (model(pairs).argmax(1) == pairs.sum(1) % model.config.prime).double().mean().item()
