"""Attribution patching: what patching would do, to first order, for all units at once.

With m the metric, a the value of a unit in the run that is patched and b what it would be exchanged
for, the change of m is about (b - a) dm/da: one forward and one backward pass instead of one run
for each unit. Source: Nanda 2023 ("Attribution patching"); exact where the model is linear, wrong
where LayerNorm, attention or a nonlinearity saturate, and most so for large exchanges such as that
of a whole residual stream.
"""

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.evals.patches.scenes import Recorded, Stage
from sae_kit.evals.shared.answers import Answers
from sae_kit.models.hooks import Site

GRADIENT_POSITIONS = 1 << 11
"""Positions whose run is kept for the backward pass at once, at most, one pair aside."""


def gradients(
    stage: Stage, base: Recorded, answers: Answers, metric: str, sites: Collection[Site]
) -> dict[Site, Float[Tensor, "pairs *axes"]]:
    """The gradient of each pair's metric in its activations at some sites of a recorded run.

    Args:
        stage: where the run was recorded.
        base: the run.
        answers: of the stage's pairs.
        metric: one that has a gradient.
        sites: where.
    """
    first, end = stage.stream[0], stage.stream[-1]
    n_at_once = max(1, GRADIENT_POSITIONS // stage.pairs.n_pos)
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for rows in torch.arange(len(stage.pairs), device=stage.model.device).split(n_at_once):
        with torch.enable_grad():
            x = base.acts[first][rows].detach().requires_grad_()
            run = stage.model.run(start=(first, x), capture=[*sites, end], stop=end)
            own = Answers(stage.pairs.select(rows), answers.clean.logits[rows])
            value = own.read(stage.logits(run.acts[end])).metric(metric).sum()
            found = torch.autograd.grad(value, [run.acts[site] for site in sites])
        for site, gradient in zip(sites, found, strict=True):
            parts[site].append(gradient)
    return {site: torch.cat(own) for site, own in parts.items()}
