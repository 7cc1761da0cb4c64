"""MLP neurons that switch on the way from one activation to another.

A neuron is on where its pre-activation is positive. Between two borders of this kind a ReLU network
is linear, so the number of borders that a path crosses is that of the linear pieces it passes
through; GPT-2's GELU has soft borders at the same places.

Source: Janiak et al. 2024 (2409.17113), which counts the last MLP's neurons that differ between the
ends of a path, the least number of borders on the way. That of borders crossed is ours.

Limits: neurons that switch and switch back between two points of a path are not seen.
"""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.evals.perturb.responses import Outcome, Response
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Site


def last_gates(model: GPT2) -> Site:
    """Where the pre-activations of the model's last MLP are."""
    return f"blocks.{model.config.n_layer - 1}.mlp.hook_pre"


@final
class GateFlips(Response):
    """How many neurons are on where they were off in the clean run, or off where they were on."""

    name = "gate_flips"

    def __init__(self, site: Site) -> None:
        self.site, self.sites = site, frozenset({site})

    def __call__(self, clean: Outcome, perturbed: Outcome) -> Float[Tensor, "hosts points pos"]:
        """See Response."""
        on, was_on = perturbed.acts[self.site] > 0, clean.acts[self.site] > 0
        return (on != was_on).sum(-1).float()


@final
class GateCrossings(Response):
    """How many neurons have switched since the point before; the first point's is the clean run.

    It remembers the last point between the pieces of a path, so every path needs one of its own.
    """

    name = "gate_crossings"

    def __init__(self, site: Site) -> None:
        self.site, self.sites = site, frozenset({site})
        self._before: Bool[Tensor, "hosts one pos d_mlp"] | None = None

    def __call__(self, clean: Outcome, perturbed: Outcome) -> Float[Tensor, "hosts points pos"]:
        """See Response."""
        on = perturbed.acts[self.site] > 0
        before = clean.acts[self.site] > 0 if self._before is None else self._before
        self._before = on[:, -1:]
        return (on != torch.cat([before, on[:, :-1]], 1)).sum(-1).float()
