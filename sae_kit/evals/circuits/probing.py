"""Subnetwork probing: a gate on every edge, learnt by gradient descent.

Each gate is drawn from a hard concrete distribution, which is 0 or 1 most of the time and can be
differentiated by its one parameter a (Louizos et al. 2018, 1712.01312):

    s = sigmoid((log u - log(1 - u) + a) / b),  gate = clamp(s (z - g) + g, 0, 1),  u ~ U(0, 1)

What is minimised is the circuit's cost with these gates plus, for every edge, `penalty` times the
probability that its gate is not 0. The penalty so is what an edge has to be worth, in the unit of
the cost, as ACDC's threshold is. Edges whose gate is above one half without noise (u = 1/2) are
kept. Source: Cao et al. 2021 (2104.03514), with the constants that Conmy et al. 2023 use.

Departures: there are gates on edges, not on nodes, and none on direct edges; penalties are sums,
not means.

Limits: a local optimum, and one that depends on the noise that was drawn.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.evals.circuits.circuit import Circuit
from sae_kit.evals.circuits.circuit_bench import CircuitBench, Weighted, trace
from sae_kit.evals.shared.draws import generator_of

LEAST, MOST, TEMPERATURE = -0.1, 1.1, 2 / 3
"""g, z and b of the formula."""
OPEN = 0.9
"""Every gate at the start, without noise."""


@final
@dataclass(frozen=True, kw_only=True)
class Probe:
    """How gates are learnt."""

    penalty: float
    """Of an edge, in units of the cost."""
    n_steps: int
    """Of Adam."""
    learning_rate: float = 0.1
    seed: int = 0
    """Draws the noise."""

    @torch.enable_grad()
    def learn(self, bench: CircuitBench) -> Float[Tensor, "receivers senders"]:
        """The gates' parameters; of edges that there cannot be, minus infinity."""
        allowed = bench.graph.allowed.to(bench.like.device)
        share = (OPEN - LEAST) / (MOST - LEAST)
        start = TEMPERATURE * math.log(share / (1 - share))
        parameters = bench.like.new_full((int(allowed.sum()),), start)
        parameters.requires_grad_()
        adam = torch.optim.Adam([parameters], lr=self.learning_rate)
        generator = generator_of(self.seed, "probing", 0)
        for _ in range(self.n_steps):
            noise = torch.rand(parameters.shape, generator=generator).to(parameters)
            weights = torch.zeros_like(allowed, dtype=parameters.dtype)
            weights = weights.masked_scatter(allowed, gates(parameters, noise))
            loss = _cost(bench, weights) + self.penalty * p_open(parameters).sum()
            (parameters.grad,) = torch.autograd.grad(loss, parameters)
            adam.step()
        learnt = torch.full_like(allowed, -torch.inf, dtype=parameters.dtype)
        return learnt.masked_scatter(allowed, parameters.detach()).cpu()

    def circuit(
        self, bench: CircuitBench, parameters: Float[Tensor, "receivers senders"]
    ) -> Circuit:
        """The edges that are kept."""
        half = torch.full_like(parameters, 0.5)
        return Circuit.of(bench.graph, gates(parameters, half) > 0.5)


def gates(parameters: Float[Tensor, "*gates"], noise: Float[Tensor, "*gates"]) -> Tensor:
    """Their values in [0, 1], for noise in [0, 1)."""
    noise = noise.clamp(1e-6, 1 - 1e-6)  # a logarithm of 0 would have no gradient
    drawn = torch.sigmoid((noise.log() - (-noise).log1p() + parameters) / TEMPERATURE)
    return (drawn * (MOST - LEAST) + LEAST).clamp(0, 1)


def p_open(parameters: Float[Tensor, "*gates"]) -> Float[Tensor, "*gates"]:
    """The probability that a gate is not 0."""
    return torch.sigmoid(parameters - TEMPERATURE * math.log(-LEAST / MOST))


def _cost(bench: CircuitBench, weights: Float[Tensor, "receivers senders"]) -> Tensor:
    """Mean over pairs."""
    wiring = Weighted(bench, weights, weights.new_ones(len(weights)))
    traced = trace(bench.graph, bench.clean.outs[0][0], wiring)
    return bench.costs(bench.read(traced)).mean()
