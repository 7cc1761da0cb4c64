"""The engine of the perturbation experiments: replace an activation, run on from there, compare.

An experiment names a place (a residual-stream site, and one position or all of them), gives each
prompt ("host") some paths of activations to put there, and says what to record. The engine does no
work that the question does not ask for:

- One position: keys and values of the positions before it are computed once for each host. Then a
  perturbed activation costs that position alone, from the write site up; all of a host's
  perturbations share its keys and values (`Prefix.forked`).
- All positions: each perturbation costs the prompt from the write site up.
- Logits are computed only where a response wants them, and compared in pieces.

Hosts are worked off in groups, paths in pieces, so that memory stays within one setting. A finished
group can be kept on disk (`Kept`); the same command then goes on behind it.

Results do not depend on groups and pieces, but for rounding: draws belong to a host's number
(`Hosts.index`). Equal activations give the clean outcome exactly, so responses are exactly 0 there.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit.evals.perturb.hosts import Hosts, Place, first_block
from sae_kit.evals.perturb.paths import Path
from sae_kit.evals.perturb.responses import Outcome, Response
from sae_kit.evals.shared.kept import Part
from sae_kit.log import Progress
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Site

log = logging.getLogger(__name__)

POINTS = 16
"""A group has so few hosts that as many points of each are run at once: a host's keys and values
are read once for all of them.
"""

Curves = dict[str, dict[str, Float[Tensor, "hosts points pos"]]]
"""Probe -> response -> values, on the CPU."""


@final
@dataclass(frozen=True, eq=False)
class Probe:
    """A path for every host of a group, and what to record along it."""

    path: Path
    responses: tuple[Response, ...]
    origin: Float[Tensor, "hosts pos d_model"] | None = None
    """What the path's outcomes are compared with that of; None: the hosts' own activations."""


@torch.no_grad()
def respond(
    model: GPT2,
    tokens: Int[Tensor, "hosts context"],
    place: Place,
    probes: Callable[[Hosts], Mapping[str, Probe]],
    *,
    memory_mb: int,
    kept: Part,
) -> Curves:
    """Every probe's responses, over all hosts.

    Args:
        model: the model.
        tokens: one prompt a row.
        place: where activations are replaced.
        probes: gives a group of hosts its paths, by name; the same names and numbers of points for
            every group. Its draws must depend on `Hosts.index`, not on the group.
        memory_mb: what the work takes, beside the model and the results, in MiB.
        kept: groups finished by an earlier run that was interrupted; new ones are added.

    Returns:
        Probe -> response -> `[hosts points pos]`, float32, on the CPU.

    Raises:
        ValueError: the place is not one of the model's; `memory_mb` is below what one host takes.
    """
    n_hosts, n_pos = tokens.shape
    place.check(model, n_pos)
    plan = Plan.of(model, place, n_pos, memory_mb)
    progress: Progress | None = None
    found: list[Mapping[str, Tensor]] = []
    for number, index in enumerate(torch.arange(n_hosts).split(plan.n_hosts)):
        values = kept.get(number)
        if values is None:
            hosts = place.hosts(model, tokens[index].to(model.device), index)
            asked = probes(hosts)
            if progress is None:
                n_points = sum(probe.path.n_points for probe in asked.values())
                plan.announce(n_hosts, n_points)
                done = int(index[0]) * n_points
                progress = Progress(n_hosts * n_points, done=done, unit="points")
            values = _group(hosts, asked, plan, progress)
            kept.put(number, values)
        found.append(values)
    if progress is not None:
        progress.close()
    curves: Curves = {}
    for name in found[0]:
        probe, _, response = name.rpartition("/")
        curves.setdefault(probe, {})[response] = torch.cat([values[name] for values in found])
    return curves


def _group(
    hosts: Hosts, probes: Mapping[str, Probe], plan: "Plan", progress: Progress
) -> dict[str, Float[Tensor, "hosts points pos"]]:
    """The responses of a group of hosts, by probe/response."""
    n_points = plan.n_points(len(hosts.index))
    values: dict[str, Tensor] = {}
    own: dict[tuple[frozenset[Site], bool], Outcome] = {}  # of the hosts themselves
    for name, probe in probes.items():
        sites = frozenset(site for response in probe.responses for site in response.sites)
        logits = any(response.needs_logits for response in probe.responses)
        origin = (hosts.base if probe.origin is None else probe.origin)[:, None]
        clean = own.get((sites, logits)) if probe.origin is None else None
        if clean is None:
            clean = hosts.outcome(origin.to(hosts.base.dtype), sites=sites, logits=logits)
            if probe.origin is None:
                own[sites, logits] = clean
        parts: dict[str, list[Tensor]] = {response.name: [] for response in probe.responses}
        for first in range(0, probe.path.n_points, n_points):
            x = probe.path.at(slice(first, first + n_points)).to(hosts.base.dtype)
            outcome = hosts.outcome(x, sites=sites, logits=logits)
            _equate(outcome, clean, (x == origin).flatten(2).all(-1))
            for response in probe.responses:
                parts[response.name].append(response(clean, outcome).float().cpu())
            progress.update(x.shape[0] * x.shape[1])
        values |= {f"{name}/{response}": torch.cat(part, 1) for response, part in parts.items()}
    return values


def _equate(outcome: Outcome, clean: Outcome, same: Bool[Tensor, "hosts points"]) -> None:
    """Give points that perturb nothing the clean outcome.

    The model would give it too, but for rounding: products of other shapes sum in another order.
    """
    host, point = same.nonzero(as_tuple=True)
    if len(host) == 0:
        return
    for site, act in outcome.acts.items():
        act[host, point] = clean.acts[site][host, 0]
    if outcome.logits is not None:
        outcome.logits[host, point] = clean.predictions()[host, 0]


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the work is cut up, from what it takes of memory and arithmetic."""

    place: Place
    n_pos: int
    """Positions replaced."""
    n_hosts: int
    """In a group."""
    n_rows: int
    """Perturbed positions at once, over the hosts of a group and their points."""
    flop_per_row: float
    """Of a run from the write site to the logits."""
    flop_per_pass: float
    """Of a full pass over a prompt."""

    @staticmethod
    def of(model: GPT2, place: Place, n_context: int, memory_mb: int) -> "Plan":
        """Cut so that about `memory_mb` MiB are in use: half for hosts, half for their points.

        Raises:
            ValueError: that is too little for one host and one point.
        """
        c = model.config
        layers = [block for i, block in enumerate(model.blocks) if i >= first_block(place.write)]
        n_pos = 1 if place.position is not None else n_context
        # A row's streams, hidden neurons and logits, each with what the next step makes of it; the
        # scores of one position's attention, whose fused kernel is not for forked prefixes.
        width = 16 * c.d_model + 3 * c.d_mlp + 2 * c.n_vocab
        if place.position is not None:
            width += 3 * c.n_head * (n_context + 1)
        row_bytes = width * model.W_E.element_size()
        kept = 2 * len(layers) * c.d_model * n_context if place.position is not None else 0
        passing = (16 * c.d_model + 3 * c.d_mlp) * n_context
        host_bytes = (kept + passing + 2 * c.n_vocab * n_pos) * model.W_E.element_size()
        half = memory_mb * (1 << 19)
        n_rows = half // row_bytes
        if n_rows < n_pos or host_bytes > half:
            least = -(-2 * max(n_pos * row_bytes, host_bytes) // (1 << 20))
            raise ValueError(
                f"memory_mb: {memory_mb} is too little for one prompt of {n_context} tokens and "
                f"one perturbation; give {least} or more"
            )
        n_hosts = min(half // host_bytes, max(1, n_rows // (n_pos * POINTS)))
        weights = sum(p.numel() for block in layers for p in block.parameters())
        all_weights = sum(p.numel() for block in model.blocks for p in block.parameters())
        head = c.n_vocab * c.d_model
        return Plan(
            place=place,
            n_pos=n_pos,
            n_hosts=n_hosts,
            n_rows=n_rows,
            flop_per_row=2.0 * (weights + head),
            flop_per_pass=2.0 * n_context * (all_weights + head),
        )

    def n_points(self, n_hosts: int) -> int:
        """How many points of each of `n_hosts` hosts are run at once."""
        return max(1, self.n_rows // (n_hosts * self.n_pos))

    def announce(self, n_hosts: int, n_points: int) -> None:
        """Say what is about to be done, and what it costs."""
        where = "all positions" if self.place.position is None else "one position"
        each = self.flop_per_row * self.n_pos
        log.info(
            "%s perturbations of %s at %s (%s prompts, %s each): %.3g GFLOP each, %.3g TFLOP in "
            "all; by full passes %.3g TFLOP",
            f"{n_hosts * n_points:,}",
            where,
            self.place.write,
            f"{n_hosts:,}",
            f"{n_points:,}",
            each / 1e9,
            each * n_hosts * n_points / 1e12,
            self.flop_per_pass * n_hosts * n_points / 1e12,
        )
