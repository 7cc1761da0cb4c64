"""Whole contexts as training batches, for objectives that run the model on.

A batch is some contexts in the order of the text: the activations of their counting positions in
reading order, and the model's own runs that these come from (`Batch.runs`). A run has gone as far
as the rows need, and goes on to the sites observed and to its predictions when asked. A batch
holds as many contexts as come nearest to `batch_rows` positions. All positions are counted so, also
those that are dropped: a step is always `batch_rows` tokens of a run's n_tokens, and the number of
steps what it is for any other source.

Activations are scaled as by `LiveSource`, with the mean norm of the first positions of the text.

Limits: no shuffling beyond the order in which contexts come, so a batch's rows are from few
contexts. Once predictions are asked for, the own logits of a batch are all in memory: batch_rows
times the vocabulary, 0.4 GB for 2,048 positions of GPT-2.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit import dist
from sae_kit.data.activations import (
    MAX_EMPTY_PASSES,
    ActivationsConfig,
    ActivationSource,
    Batch,
    LiveConfig,
    Passes,
    input_scale,
)
from sae_kit.data.tokens import TokenSource, take
from sae_kit.models.hooks import Hookable, Site
from sae_kit.models.splice import CleanRun
from sae_kit.timing import Stopwatch

N_SAMPLE_ROWS = 8192  # positions from which scales are estimated and SAEs start
MAX_LOGITS = 1 << 26  # logits of one run, at most (256 MiB in float32), one context aside


def open_contexts(
    config: ActivationsConfig,
    model: Hookable,
    sites: Sequence[Site],
    tokens: TokenSource,
    *,
    observed: Sequence[Site],
    batch_rows: int,
    special_ids: Sequence[int],
    stopwatch: Stopwatch,
) -> "ContextSource":
    """The source at its start.

    Args:
        config: which positions count; `contexts_per_pass` bounds how many are run at once.
        model: gives the activations, and is run on with others.
        sites: what SAEs read and write.
        tokens: the text.
        observed: further sites, whose activations the model's runs are to give on demand.
        batch_rows: positions in a batch of this process, to the nearest context.
        special_ids: tokens that do not count, if `config` drops them.
        stopwatch: counts where the time goes.

    Raises:
        ValueError: activations of a kind that has no model, a site without a width, or less than a
            context to a batch.
    """
    if not isinstance(config, LiveConfig):
        raise ValueError(
            f"activations.kind: {config.word!r} has no whole contexts and no model, which end-to-"
            "end objectives need; give activations=live or objective=local"
        )
    _check_rows(batch_rows, tokens.context_size)
    for site in observed:
        _check_width(model, site)
    return ContextSource(
        config,
        model,
        sites,
        tokens,
        observed=observed,
        n_contexts=round(batch_rows / tokens.context_size),
        special_ids=special_ids,
        stopwatch=stopwatch,
    )


def _check_rows(own_rows: int, context_size: int) -> None:
    """Whether a process's part of a batch holds a context; users know the whole batch only."""
    if own_rows < context_size:
        n = dist.world().size
        shared = f" shared by {n} processes is {own_rows} for each, which" if n > 1 else ""
        raise ValueError(
            f"trainer.batch_rows: {n * own_rows}{shared} is less than one context of "
            f"{context_size} positions; give {n * context_size} or more, or lower data.context_size"
        )


def _check_width(model: Hookable, site: Site) -> None:
    """Whether positions can be compared at a site that an objective observes."""
    try:
        model.width(site)
    except ValueError as error:
        raise ValueError(
            f"objective.downstream_sites: positions cannot be compared ({error}); give sites such "
            "as 'blocks.*.hook_resid_post'"
        ) from error


@final
class ContextSource(ActivationSource):
    """See the module's docstring."""

    gives_runs: ClassVar[bool] = True

    def __init__(
        self,
        config: LiveConfig,
        model: Hookable,
        sites: Sequence[Site],
        tokens: TokenSource,
        *,
        observed: Sequence[Site],
        n_contexts: int,
        special_ids: Sequence[int],
        stopwatch: Stopwatch,
    ) -> None:
        """`n_contexts` contexts of `tokens` a batch; the rest as for `open_contexts`."""
        self.config, self.model, self.tokens, self.n_contexts = config, model, tokens, n_contexts
        self.drop_first_position = config.drop_first_position
        self.drop_special_tokens = config.drop_special_tokens
        self.widths = {site: model.width(site) for site in sites}
        self.observed = list(observed)
        self.measured = list(dict.fromkeys([*sites, *observed]))  # what needs a scale
        self.scales: dict[Site, float] = {}
        self.passes = Passes(config, model, self.measured, special_ids)
        self.stopwatch = stopwatch
        self._sample: dict[Site, Tensor] = {}
        self._per_run = 0

    def prepare(self) -> None:
        """Estimate the scales, unless that is done."""
        if not self.scales:
            self.scales = {
                site: input_scale(site, rows, self.config)
                for site, rows in self._first_rows().items()
            }

    def sample(self, site: Site, n_rows: int) -> Float[Tensor, "rows _"]:
        """Rows spread evenly over the first positions of the text."""
        self.prepare()
        rows = self._first_rows()[site]
        return rows[:: max(1, len(rows) // n_rows)][:n_rows] * self.scales[site]

    def _first_rows(self) -> dict[Site, Tensor]:
        """The first counting positions of the text, which training then begins with as well."""
        if not self._sample:
            position, n_rows = self.tokens.state_dict(), 0
            passes: list[dict[Site, Tensor]] = []
            while n_rows < N_SAMPLE_ROWS:
                passes.append(self._next_rows())
                n_rows += len(passes[-1][self.measured[0]])
            self.tokens.load_state_dict(position)
            self._sample = {
                site: torch.cat([rows[site] for rows in passes])[:N_SAMPLE_ROWS]
                for site in self.measured
            }
        return self._sample

    def _next_rows(self) -> dict[Site, Tensor]:
        tokens = self._next_contexts(self.config.contexts_per_pass)
        with self.stopwatch("model forward"):
            return self.passes.rows(tokens.to(self.model.device))[0]

    def __next__(self) -> Batch:
        """The next contexts of the text."""
        self.prepare()
        self._sample = {}  # needed at the start only
        tokens, n = self._next_contexts(self.n_contexts), self._contexts_per_run()
        counts = self.passes.counting(tokens)
        with self.stopwatch("model forward"):
            runs = [
                CleanRun(self.model, some, which, capture=self.widths, observe=self.observed)
                for some, which in zip(tokens.split(n), counts.split(n), strict=True)
            ]
        acts = {
            site: torch.cat([run.select(run.acts[site]) for run in runs]).float()
            * self.scales[site]
            for site in self.widths
        }
        return Batch(acts, int(counts.any(1).sum()), runs, self.scales)

    def _next_contexts(self, n: int) -> Int[Tensor, "batch pos"]:
        """The next contexts in which a position counts, on the CPU."""
        for _ in range(MAX_EMPTY_PASSES):
            with self.stopwatch("tokens"):
                tokens = take(self.tokens, n)
            if bool(self.passes.counting(tokens).any()):
                return tokens
        raise ValueError(
            f"data: {MAX_EMPTY_PASSES * n} contexts in a row hold nothing but special tokens; give "
            "other text, or activations.drop_special_tokens=false"
        )

    def _contexts_per_run(self) -> int:
        """How many contexts are run at once, so that their logits stay within bounds."""
        if not self._per_run:
            # One token is enough to learn the size of the vocabulary.
            token = torch.zeros(1, 1, dtype=torch.int64, device=self.model.device)
            with torch.no_grad():
                logits = self.model.run(token).logits
            assert logits is not None
            fit = MAX_LOGITS // (self.tokens.context_size * logits.shape[-1])
            self._per_run = max(1, min(fit, self.config.contexts_per_pass))
        return self._per_run

    def state_dict(self) -> dict[str, Any]:
        """The scales and the position in the text."""
        return {"tokens": self.tokens.state_dict(), "scales": self.scales}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position, as if never stopped."""
        self.tokens.load_state_dict(state["tokens"])
        self.scales = dict(state["scales"])

    def continue_from(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on with the first context that no process has read."""
        self.tokens.continue_from([state["tokens"] for state in states])
        self.scales = dict(states[0]["scales"])
