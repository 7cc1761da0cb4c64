"""Contexts around places of the text, with a latent's activations in them, as pages show them."""

from typing import Any, final

import torch
from torch import Tensor

from sae_kit.viz.browser.atlas import Atlas
from sae_kit.viz.browser.labels import n_before

FULL = 1000
"""What an activation as large as the latent's largest is written as."""
Window = list[Any]
"""`[context, position of the first token, number of the peak in the window, tokens, activations]`,
activations in thousandths of the latent's largest.
"""


@final
class Windows:
    """The windows kept of one site's latents, of one kind ("top" or "sample")."""

    def __init__(self, atlas: Atlas, site: int, kind: str) -> None:
        self.place, self.acts = (
            atlas.known(f"{kind}_place", site),
            atlas.known(f"{kind}_acts", site),
        )
        self._largest = atlas.largest(site)
        if self.place is not None:
            assert atlas.dashboard is not None
            self._contexts = atlas.dashboard.arrays["contexts"]
            self._n_before = n_before(atlas)

    def of(self, first: int, last: int) -> list[list[Window | None]]:
        """Those of latents `first` to `last` (not included), None where a place is not in use."""
        if self.place is None or self.acts is None:
            return [[] for _ in range(first, last)]
        place, n_pos = self.place[first:last].long(), self._contexts.shape[1]
        window = torch.arange(self.acts.shape[-1]) - self._n_before
        around = place[..., None] + window
        inside = around // n_pos == place[..., None] // n_pos
        tokens = self._contexts.flatten()[around.clamp(0, self._contexts.numel() - 1)]
        begins, n_inside = inside.int().argmax(-1), inside.sum(-1)
        context, position = place // n_pos, place % n_pos
        used, scaled = place >= 0, self._scaled(first, last)
        columns = (used, context, position, begins, n_inside, tokens, scaled)
        return [
            [self._window(*one) if is_used else None for is_used, *one in zip(*latent, strict=True)]
            for latent in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def _scaled(self, first: int, last: int) -> Tensor:
        assert self.acts is not None
        scale = FULL / self._largest[first:last].clamp_min(torch.finfo(torch.float32).tiny)
        acts = self.acts[first:last].float() * scale[:, None, None]
        return acts.round().clamp(0, FULL).int()

    def _window(
        self,
        context: int,
        position: int,
        begin: int,
        n: int,
        tokens: list[int],
        acts: list[int],
    ) -> Window:
        end, before = begin + n, self._n_before - begin
        return [context, position - before, before, tokens[begin:end], acts[begin:end]]
