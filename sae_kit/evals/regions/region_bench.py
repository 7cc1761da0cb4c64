"""What eval=stable_regions runs: ways between two activations, and planes through three.

Activations are those of the last position of prompts, at one site. In the context of prompt A, its
own is replaced; positions before the last keep the keys and values that A gives them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.evals.perturb.hosts import Hosts, Place
from sae_kit.evals.perturb.paths import Path, Plane, Segment
from sae_kit.evals.perturb.perturbation import Curves, Probe, respond
from sae_kit.evals.perturb.responses import KL, L2, LogitDifference, Response
from sae_kit.evals.regions.gates import GateCrossings, GateFlips, last_gates
from sae_kit.evals.regions.sampled_pairs import Pairs
from sae_kit.evals.shared.kept import Part
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Site

MARGIN = 0.25
"""How far a plane reaches beyond the square that its three activations span."""
PROMPTS_PER_PASS = 64

Way = Callable[
    [
        Float[Tensor, "hosts pos d_model"],
        Float[Tensor, "hosts pos d_model"],
        Float[Tensor, " alphas"],
    ],
    Path,
]
"""Makes the path from some activations to others, such as `Segment`."""
Along = Mapping[str, Float[Tensor, "pairs alphas"]]
"""Response -> its values along every pair's path, on the CPU: l2 at the read site, kl, and
gate_flips and gate_crossings where the last MLP comes after the written site."""


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Slice:
    """The plane through the activations of three prompts, in the context of each."""

    distances: Float[Tensor, "three betas alphas"]
    """Of the output from what each context gives by itself."""
    t: float
    """C is at alpha = t, beta = 1; A at (0, 0) and B at (1, 0)."""


@final
class Bench:
    """One model, with one site to write and one to read.

    Args:
        model: the model.
        write: where activations are replaced.
        read: where distances are measured.
        memory_mb: what the perturbed runs take, in MiB.
    """

    def __init__(self, model: GPT2, write: Site, read: Site, *, memory_mb: int) -> None:
        self.model, self.read = model, read
        self.place = Place(write=write, position=-1)
        self._memory_mb = memory_mb
        order, gates = list(model.sites()), last_gates(model)
        self._gates = gates if order.index(write) < order.index(gates) else None

    @torch.no_grad()
    def last_activations(
        self, prompts: Int[Tensor, "prompts pos"]
    ) -> Float[Tensor, "prompts d_model"]:
        """What the model itself has at the written site, at the last position."""
        write = self.place.write
        parts = prompts.to(self.model.device).split(PROMPTS_PER_PASS)
        runs = [self.model.run(part, capture=[write], stop=write) for part in parts]
        return torch.cat([run.acts[write][:, -1] for run in runs])

    def along(
        self,
        pairs: Pairs,
        ways: Mapping[str, Way],
        alphas: Float[Tensor, " alphas"],
        kept: Part,
    ) -> dict[str, Along]:
        """Go from every A to its B, on every way."""
        ends = self.last_activations(pairs.b)[:, None]

        def probes(hosts: Hosts) -> dict[str, Probe]:
            end = ends[hosts.index.to(ends.device)]
            return {
                name: Probe(way(hosts.base, end, alphas), self._responses())
                for name, way in ways.items()
            }

        return _at_last(self._respond(pairs.a, probes, kept))

    def endings(self, pairs: Pairs, alphas: Float[Tensor, " alphas"]) -> Along:
        """On the straight line, also logit_difference: the logit of the token that A's own
        prediction puts first, less that of B's; 0 throughout where they are the same token.
        """
        ends = self.last_activations(pairs.b)[:, None]
        tops = [self._top(prompts)[:, None] for prompts in (pairs.a, pairs.b)]

        def probes(hosts: Hosts) -> dict[str, Probe]:
            index = hosts.index.to(ends.device)
            difference = LogitDifference(tops[0][index], tops[1][index])
            path = Segment(hosts.base, ends[index], alphas)
            return {"line": Probe(path, (*self._responses(), difference))}

        return _at_last(self._respond(pairs.a, probes, Part(None)))["line"]

    def slice(self, triple: Int[Tensor, "three pos"], size: int, kept: Part) -> Slice:
        """The plane on a grid of `size` points each way.

        Raises:
            ValueError: the first two activations are equal.
        """
        sides = torch.linspace(-MARGIN, 1 + MARGIN, size)
        # The same three corners for every host.
        a, b, c = (act[None, None] for act in self.last_activations(triple))

        def probes(hosts: Hosts) -> dict[str, Probe]:
            own = [corner.expand(len(hosts.index), 1, -1) for corner in (a, b, c)]
            plane = Plane(own[0], own[1], own[2], sides, sides)
            return {"plane": Probe(plane, (L2(self.read),))}

        found = self._respond(triple, probes, kept)["plane"]["l2"]
        return Slice(found.view(3, size, size), Plane(a, b, c, sides, sides).t.item())

    def _responses(self) -> tuple[Response, ...]:
        """New ones for every path, since some remember where they have been."""
        plain: tuple[Response, ...] = (L2(self.read), KL())
        if self._gates is None:
            return plain
        return (*plain, GateFlips(self._gates), GateCrossings(self._gates))

    def _respond(
        self,
        prompts: Int[Tensor, "prompts context"],
        probes: Callable[[Hosts], Mapping[str, Probe]],
        kept: Part,
    ) -> Curves:
        return respond(
            self.model, prompts, self.place, probes, memory_mb=self._memory_mb, kept=kept
        )

    @torch.no_grad()
    def _top(self, prompts: Int[Tensor, "prompts pos"]) -> Int[Tensor, " prompts"]:
        """The likeliest next tokens."""
        tops = []
        for part in prompts.to(self.model.device).split(PROMPTS_PER_PASS):
            logits = self.model.run(part).logits
            assert logits is not None
            tops.append(logits[:, -1].argmax(-1))
        return torch.cat(tops)


def _at_last(curves: Curves) -> dict[str, Along]:
    """Without the axis of positions, of which there is one."""
    return {
        name: {response: values[..., 0] for response, values in found.items()}
        for name, found in curves.items()
    }
