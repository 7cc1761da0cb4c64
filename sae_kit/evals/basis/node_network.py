"""A network cut into node layers: what interaction bases and graphs are about.

Between two node layers is a section, a map from the activations at one to those at the next, which
nothing bypasses. A plain MLP is cut between its layers, a GPT-2 at sites of its residual stream.

Activations are `[batch pos width]`; what has no positions has one. Rows of a batch do not see each
other. Everything is in float64: whitening amplifies what float32 rounds.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Prefix, Site, check_sites

Section = Callable[[Tensor], Tensor]
"""`[batch pos d]` -> `[batch pos d_next]`, differentiable; the numbers of positions may differ."""


@final
@dataclass(frozen=True)
class NodeNetwork:
    """Node layers and what lies between them."""

    names: tuple[str, ...]
    """Of the node layers, in order."""
    sections: tuple[Section, ...]
    """One less."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.sections) + 1 or len(self.names) < 2:
            raise ValueError(
                f"node layers: {len(self.names)} names and {len(self.sections)} sections between "
                "them; give at least two node layers and one section less"
            )

    def activations(self, x: Float[Tensor, "batch pos d"]) -> list[Float[Tensor, "batch _ _"]]:
        """Those at every node layer, from those at the first."""
        found = [x]
        for section in self.sections:
            found.append(section(found[-1]))
        return found

    def outputs(self, x: Float[Tensor, "batch pos d"], layer: int) -> Float[Tensor, "batch _ _"]:
        """The activations at the last node layer, from those at node layer `layer`."""
        for section in self.sections[layer:]:
            x = section(x)
        return x


def of_modules(modules: Sequence[nn.Module], names: Sequence[str] | None = None) -> NodeNetwork:
    """A network that is a chain of modules, each between two node layers.

    Args:
        modules: each maps `[batch d]` to `[batch d_next]`, or `[batch pos d]` likewise.
        names: of the node layers; None: "0", "1", ...
    """
    names = tuple(names) if names is not None else tuple(str(i) for i in range(len(modules) + 1))
    return NodeNetwork(names, tuple(modules))


def of_gpt2(model: GPT2, sites: Sequence[Site], prefix: Prefix | None = None) -> NodeNetwork:
    """A GPT-2 in float64, cut at sites of its residual stream, in order.

    Args:
        model: the model.
        sites: of the node layers.
        prefix: keys and values of one context, which stands before every input as a part of the
            network. A first token that all inputs share is best put there: its activations are
            constant, and in GPT-2 so large that they would rule every covariance.

    Raises:
        ValueError: fewer than two sites, unknown ones, ones off the residual stream or out of
            order, or a model in another precision.
    """
    known = list(model.sites())
    check_sites(sites, known, "sites")
    off = [site for site in sites if ".hook_resid_" not in site]
    if off:
        raise ValueError(
            f"sites: {off[0]!r} is not the whole residual stream, so parts of the model bypass it; "
            "give hook_resid_pre, hook_resid_mid or hook_resid_post"
        )
    order = [known.index(site) for site in sites]
    if order != sorted(set(order)):
        raise ValueError(f"sites: {list(sites)} are not in the order of the model, each once")
    if model.W_E.dtype != torch.float64:
        raise ValueError(
            f"model.dtype: {str(model.W_E.dtype).removeprefix('torch.')} is too coarse for "
            "eigenvectors of small eigenvalues; give model.dtype=float64"
        )

    def between(first: Site, second: Site) -> Section:
        def section(x: Tensor) -> Tensor:
            before = None if prefix is None else prefix_of(prefix, len(x))
            run = model.run(start=(first, x), capture=[second], stop=second, prefix=before)
            return run.acts[second]

        return section

    return NodeNetwork(tuple(sites), tuple(between(*pair) for pair in itertools.pairwise(sites)))


def prefix_of(prefix: Prefix, n_rows: int) -> Prefix:
    """The one context of a prefix, before `n_rows` inputs."""
    return prefix.rows(torch.zeros(n_rows, dtype=torch.long, device=prefix.device))
