"""What eval=stable_regions runs: paths between two activations, and planes through three."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.evals.hosts import Hosts, Place
from sae_kit.evals.kept import Part
from sae_kit.evals.paths import Arc, Path, Plane, Segment
from sae_kit.evals.perturbation import Probe, respond
from sae_kit.evals.responses import KL, L2, LogitDifference, Outcome, Response
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Site

LINE, ARC = "line", "arc"
MARGIN = 0.25
"""How far a plane reaches beyond the square of its three activations."""
PROMPTS_PER_PASS = 64


@final
class GateFlips(Response):
    """How many neurons of an MLP have a pre-activation of another sign than in the clean run."""

    name = "gate_flips"

    def __init__(self, site: Site) -> None:
        self.site, self.sites = site, frozenset({site})

    def __call__(self, clean: Outcome, perturbed: Outcome) -> Float[Tensor, "hosts points pos"]:
        """See Response."""
        on, was_on = perturbed.acts[self.site] > 0, clean.acts[self.site] > 0
        return (on != was_on).sum(-1).float()


@torch.no_grad()
def last_activations(
    model: GPT2, tokens: Int[Tensor, "prompts pos"], site: Site
) -> Float[Tensor, "prompts d_model"]:
    """The activations at the last positions."""
    runs = [
        model.run(some.to(model.device), capture=[site], stop=site).acts[site][:, -1]
        for some in tokens.split(PROMPTS_PER_PASS)
    ]
    return torch.cat(runs)


@final
class Between:
    """Responses on the way from prompts' own activations to others.

    Args:
        model: the model.
        site: where activations are replaced.
        read: where distances are measured.
        n_alphas: points on the way.
        paths: LINE, ARC.
        memory_mb: what the perturbed runs take.

    Raises:
        ValueError: `read` comes before `site`, or the model lacks one of them.
    """

    def __init__(
        self,
        model: GPT2,
        site: Site,
        read: Site,
        n_alphas: int,
        *,
        paths: Sequence[str],
        memory_mb: int,
    ) -> None:
        self._model, self._place = model, Place(write=site, position=-1)
        self._alphas, self._paths = torch.linspace(0, 1, n_alphas), paths
        self._memory_mb = memory_mb
        gates = f"blocks.{model.config.n_layer - 1}.mlp.hook_pre"
        order = list(model.sites())
        # Behind the last MLP there is no gate that could flip.
        self._has_gates = order.index(site) < order.index(gates)
        self._responses: tuple[Response, ...] = (L2(read), KL())
        if self._has_gates:
            self._responses = (*self._responses, GateFlips(gates))
        self._read = read
        self.distances: dict[str, Tensor] = {}
        """Path -> `[prompts alphas]`."""
        self.kl: dict[str, Tensor] = {}
        self.flips: dict[str, Tensor] = {}

    def measure(
        self,
        tokens: Int[Tensor, "prompts pos"],
        ends: Float[Tensor, "prompts d_model"],
        kept: Part,
    ) -> None:
        """Go from every prompt's last activation to its end."""
        self._place.check(self._model, tokens.shape[1], [self._read])
        centre = torch.cat([last_activations(self._model, tokens, self._place.write), ends]).mean(0)

        def probes(hosts: Hosts) -> dict[str, Probe]:
            to = ends[hosts.index.to(ends.device)][:, None]
            ways: dict[str, Path] = {LINE: Segment(hosts.base, to, self._alphas)}
            if ARC in self._paths:
                ways[ARC] = Arc(hosts.base, to, self._alphas, centre)
            return {name: Probe(way, self._responses) for name, way in ways.items()}

        found = respond(
            self._model, tokens, self._place, probes, memory_mb=self._memory_mb, kept=kept
        )
        for name, values in found.items():
            self.distances[name] = values["l2"][..., 0]
            self.kl[name] = values["kl"][..., 0]
            none = torch.zeros_like(self.kl[name])
            self.flips[name] = values["gate_flips"][..., 0] if self._has_gates else none

    def logit_difference(
        self, tokens: Int[Tensor, "one pos"], ends: Float[Tensor, "two d_model"]
    ) -> Float[Tensor, " alphas"]:
        """On the straight line between the two activations `ends`, the logit of the token that is
        likeliest at its beginning less that of the one at its end; 1 and 0 there. Zero throughout
        where these are the same token.
        """
        outcomes = self._logits(tokens, ends[None, :, None])
        first, second = outcomes.argmax(-1).tolist()
        chosen = LogitDifference(
            torch.tensor([[first]], device=tokens.device),
            torch.tensor([[second]], device=tokens.device),
        )
        way = Segment(ends[:1, None], ends[1:, None], self._alphas)
        found = respond(
            self._model,
            tokens,
            self._place,
            lambda _: {LINE: Probe(way, (chosen,))},
            memory_mb=self._memory_mb,
            kept=Part(None),
        )
        values = found[LINE]["logit_difference"][0, :, 0]
        span = values[0] - values[-1]
        return (values - values[-1]) / span if span != 0 else torch.zeros_like(values)

    def _logits(self, tokens: Tensor, x: Tensor) -> Float[Tensor, "points vocab"]:
        hosts = self._place.hosts(self._model, tokens, torch.zeros(1, dtype=torch.long))
        return hosts.outcome(x, sites=(), logits=True).predictions()[0, :, 0]


@final
class Slices:
    """Distances of the output on the plane through three prompts' activations.

    Args:
        model: the model.
        site: where activations are replaced.
        read: where distances are measured.
        size: points along each side.
        memory_mb: what the perturbed runs take.
    """

    def __init__(self, model: GPT2, site: Site, read: Site, size: int, memory_mb: int) -> None:
        self._model, self._place, self._read = model, Place(write=site, position=-1), read
        self._sides = torch.linspace(-MARGIN, 1 + MARGIN, size)
        self._memory_mb = memory_mb

    def of(self, tokens: Int[Tensor, "three pos"], kept: Part, name: str) -> dict[str, Tensor]:
        """For each of the three contexts, the distance from its own clean output, as rows of beta
        and columns of alpha; and t, the place of the third activation at (t, 1).
        """
        acts = last_activations(self._model, tokens, self._place.write)
        a, b, c = (act.expand(3, 1, -1) for act in acts)
        plane = Plane(a, b, c, self._sides, self._sides)

        def probes(hosts: Hosts) -> dict[str, Probe]:
            # The same plane for every context.
            one, two, three = (corner[: len(hosts.index)] for corner in (a, b, c))
            path = Plane(one, two, three, self._sides, self._sides)
            return {"plane": Probe(path, (L2(self._read),))}

        found = respond(
            self._model, tokens, self._place, probes, memory_mb=self._memory_mb, kept=kept
        )
        n = len(self._sides)
        return {
            f"{name}/distances": found["plane"]["l2"][..., 0].view(3, n, n),
            f"{name}/t": plane.t[:1, 0].float().cpu(),
            f"{name}/sides": self._sides,
        }
