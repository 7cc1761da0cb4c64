"""Trains the transformer that adds modulo a prime, on some of all pairs, until it can do the rest.

Full batches, AdamW. Weight decay makes the network leave the answers it has learnt by heart for a
rule ("grokking"), which takes longer the smaller the part is that it sees.

Source: Nanda et al. 2023 (2301.05217); sizes, learning rate and part as in Bushnaq et al. 2024
(2405.10928).
"""

from dataclasses import dataclass, field
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.config import check_counts
from sae_kit.log import Progress
from sae_kit.models.modular_addition import AdditionConfig, AdditionTransformer, all_pairs

CHECK_EVERY = 100
"""Steps after which the held-out pairs are asked."""


@final
@dataclass(frozen=True, kw_only=True)
class AdditionTraining:
    """How to train; the defaults are those for prime 113."""

    model: AdditionConfig = field(default_factory=AdditionConfig)
    train_fraction: float = 0.3
    """Of all pairs."""
    n_steps: int = 60_000
    """At most."""
    lr: float = 1e-3
    weight_decay: float = 1.0
    n_warmup_steps: int = 10
    margin: float = 1e-3
    """Training ends where the mean loss on held-out pairs is below this (nats)."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "n_steps", "n_warmup_steps")
        if not 0 < self.train_fraction < 1:
            raise ValueError(f"train_fraction: {self.train_fraction}; give a share of the pairs")


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Trained:
    """A network, and which pairs it saw."""

    model: AdditionTransformer
    train: Int[Tensor, "n two"]
    heldout: Int[Tensor, "m two"]
    losses: Float[Tensor, "checks two"]
    """On pairs seen and held out, every CHECK_EVERY steps."""

    @property
    def n_steps(self) -> int:
        """Taken, rounded up to the last check."""
        return CHECK_EVERY * len(self.losses)


def train(config: AdditionTraining) -> Trained:
    """Train one."""
    generator = torch.Generator().manual_seed(config.seed)
    model = AdditionTransformer(config.model, generator=generator)
    pairs = all_pairs(config.model.prime)
    pairs = pairs[torch.randperm(len(pairs), generator=generator)]
    seen, heldout = pairs.tensor_split([round(config.train_fraction * len(pairs))])
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    warmup = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / config.n_warmup_steps)
    )
    losses: list[list[float]] = []
    progress = Progress(config.n_steps, unit="steps")
    for step in range(1, config.n_steps + 1):
        optimiser.zero_grad()
        loss = loss_on(model, seen)
        loss.backward()
        optimiser.step()
        warmup.step()
        if step % CHECK_EVERY == 0 or step == config.n_steps:
            with torch.no_grad():
                losses.append([loss.item(), loss_on(model, heldout).item()])
            progress.update(CHECK_EVERY, heldout=losses[-1][1])
            if losses[-1][1] < config.margin:
                break
    progress.close()
    return Trained(model.requires_grad_(False), seen, heldout, torch.tensor(losses))


def loss_on(model: AdditionTransformer, pairs: Int[Tensor, "n two"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the sums, in nats."""
    return F.cross_entropy(model(pairs), pairs.sum(1) % model.config.prime)


@torch.no_grad()
def accuracy_on(model: AdditionTransformer, pairs: Int[Tensor, "n two"]) -> float:
    """The share of pairs whose sum has the largest logit."""
    return (model(pairs).argmax(1) == pairs.sum(1) % model.config.prime).double().mean().item()
