"""Which latents of SAEs are a graph's nodes: at each site, those that matter most for a task.

An SAE has thousands of latents, and each node's edges are tried one by one. So some are chosen, and
all others are part of the node "rest". What latent j stands for is estimated by integrated
gradients along a straight line of the activation x at its site, from ablated to clean (Sundararajan
et al. 2017; for latents, Marks et al. 2024, 2403.19647):

    sum over positions of (z_j clean - z_j ablated) decoder_j . mean over the line of d cost / d x

of each pair. Chosen are the latents for which the mean over pairs of its size is largest.

Limits: each latent is judged by itself, in the whole model, so that of two that do the same both
may be chosen; encoders are not differentiated through.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.evals.circuits.circuit import Chosen, check_places
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.patches.units import Latents
from sae_kit.evals.shared.ablations import Ablation
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Site
from sae_kit.sae.base import SAE


@final
@dataclass(frozen=True, kw_only=True, eq=False)  # eq: tensors have no single truth value
class Attributed:
    """The latents of one SAE that are chosen, in the order of their numbers."""

    site: Site
    sae: SAE
    latents: Int[Tensor, " chosen"]
    sizes: Float[Tensor, " chosen"]
    """Mean over pairs of their attributions' sizes, in units of the metric."""

    @property
    def nodes(self) -> Chosen:
        """What a graph takes."""
        return Chosen(self.sae, self.latents)

    def rows(self) -> list[dict[str, Any]]:
        """Rows of a result, of kind "latent"."""
        both = zip(self.latents.tolist(), self.sizes.tolist(), strict=True)
        about = {"kind": "latent", "site": self.site}
        return [{**about, "latent": latent, "attribution": size} for latent, size in both]


def saes_at(sites: Sequence[Site], saes: Mapping[Site, SAE], model: GPT2) -> dict[Site, SAE]:
    """The SAEs that read these sites.

    Raises:
        ValueError: a site where latents can be no nodes, or that no SAE reads.
    """
    check_places(sites, model)
    for site in sites:
        if site not in saes:
            there_are = f"those given read {', '.join(saes)}" if saes else "none are given"
            raise ValueError(
                f"latent_sites: no SAE reads {site!r}: {there_are}; give run or saes with one of it"
            )
    return {site: saes[site] for site in sites}


def choose(
    bench: CircuitBench, saes: Mapping[Site, SAE], ablation: Ablation, *, n: int, n_steps: int
) -> list[Attributed]:
    """`n` latents of each SAE, or all that are ever active where these are fewer.

    Args:
        bench: of a graph without latents; its pairs and its metric are what matters.
        saes: by the site they read.
        ablation: what circuits are ablated by.
        n: how many.
        n_steps: points on the line.
    """
    chosen = []
    for site, sae in saes.items():
        units, found = attributions(bench, site, sae, ablation, n_steps)
        sizes = found.abs().mean(1)
        best = sizes.sort(descending=True, stable=True).indices[:n].sort().values
        latents = units.latents[best]
        chosen.append(Attributed(site=site, sae=sae, latents=latents, sizes=sizes[best]))
    return chosen


def attributions(
    bench: CircuitBench, site: Site, sae: SAE, ablation: Ablation, n_steps: int
) -> tuple[Latents, Float[Tensor, "active pairs"]]:
    """The active latents, and by how much each pair's cost would grow without each of them."""
    model, pairs = bench.graph.model, bench.pairs
    (units,) = Latents.of(model, pairs, {site: sae})
    assert isinstance(units, Latents)
    clean, corrupt = (
        model.run(tokens, capture=[site], stop=site).acts[site]
        for tokens in (pairs.clean, pairs.corrupt)
    )
    ablated = ablation.of(site, clean, corrupt)
    gradient = torch.zeros_like(clean)
    for step in range(n_steps):
        # In the middle of each step: at the clean end the KL has no gradient.
        x = torch.lerp(ablated, clean, (step + 0.5) / n_steps)
        gradient += _gradient(bench, site, x) / n_steps
    values = ablation.of(f"{site}/latents", units.value(clean), units.value(corrupt))
    return units, units.attribution(gradient, clean, values)


@torch.enable_grad()
def _gradient(bench: CircuitBench, site: Site, x: Float[Tensor, "pairs pos d"]) -> Tensor:
    """Of each pair's cost, where this is the activation at the site."""
    x = x.detach().requires_grad_()
    run = bench.graph.model.run(bench.pairs.clean, edit={site: lambda _: x})
    assert run.logits is not None
    (gradient,) = torch.autograd.grad(bench.costs(run.logits[:, -1]).sum(), x)
    return gradient
