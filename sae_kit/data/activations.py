"""Activations as training rows: one model pass feeds every chosen site through one shuffle buffer.

The buffer holds `buffer_rows` positions with their activations at all sites. A batch takes random
places out of it and new positions from the model fill exactly those places, so a position stays for
a random time and a batch mixes many contexts: at the defaults several hundred for 2,048 rows
(`Batch.n_contexts` counts them). All sites see the same positions in the same order.

Position 0 and special tokens are dropped by default: GPT-2's position 0 has a norm some 30 times
that of any other (METHODS §0.3) and would rule the mean, the scale and the loss.

Inputs are scaled to a mean norm of sqrt(width), one number per site, estimated on the first full
buffer; whoever saves the SAE folds it into the weights.

Limits: the buffer lies on the model's device, and a checkpoint of the source contains it. The first
batches come from fewer contexts than later ones, as the buffer starts with whole contexts.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit import dist
from sae_kit.config import Family, check_counts
from sae_kit.data.tokens import TokenSource, take
from sae_kit.maths import widest_float
from sae_kit.models.hooks import Hookable, Site
from sae_kit.models.splice import CleanRun
from sae_kit.timing import Stopwatch

log = logging.getLogger(__name__)

MAX_EMPTY_PASSES = 100
"""Model passes in a row without a position that counts, after which the text is given up."""


@final
@dataclass(frozen=True)
class Batch:
    """One training batch: the same positions at every site."""

    acts: Mapping[Site, Float[Tensor, "rows _"]]
    """Scaled activations by site."""
    n_contexts: int
    """Distinct contexts the rows come from."""
    runs: Sequence[CleanRun] = ()
    """The model's own runs on whole contexts, of whose counting positions the rows are, one run
    after the other in reading order; only from a `sae_kit.data.contexts.ContextSource`.
    """
    scales: Mapping[Site, float] = field(default_factory=dict)
    """With `runs`: what the activations at each site read, written or observed are scaled by."""


class ActivationSource(ABC):
    """An endless iterator of batches, deterministic in (config, seed, data); its state is the exact
    position.
    """

    gives_runs: ClassVar[bool] = False
    """Whether batches come with the model's own runs on whole contexts (`Batch.runs`)."""

    widths: Mapping[Site, int]
    """Values per row, by site."""
    scales: Mapping[Site, float]
    """What activations are multiplied by, by site; known after `prepare`."""
    drop_first_position: bool
    """Whether position 0 of every context is left out."""
    drop_special_tokens: bool
    """Whether end-of-text tokens are left out."""
    text: Mapping[str, Any] | None = None
    """The config of the text the rows are of, as plain types; None: that of the run's own text."""

    @abstractmethod
    def prepare(self) -> None:
        """Fill the buffer and estimate the scales, unless that is done."""

    @abstractmethod
    def sample(self, site: Site, n_rows: int) -> Float[Tensor, "rows _"]:
        """Up to `n_rows` scaled rows to start from; the position stays."""

    @abstractmethod
    def __next__(self) -> Batch:
        """The next batch."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The exact position, as tensors and JSON values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position, as if never stopped."""

    def continue_from(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on behind all positions of a run that had another number of processes.

        Here for sources whose position counts the rows of all processes together.

        Raises:
            ValueError: this source's position is bound to the number of processes.
        """
        self.load_state_dict(states[0])


@dataclass(frozen=True, kw_only=True)
class ActivationsConfig(Family, ABC, tag="kind", package="sae_kit.data"):
    """Where activations come from, and which positions count."""

    drop_first_position: bool = True
    """Whether position 0 of every context is left out."""
    drop_special_tokens: bool = True
    """Whether end-of-text tokens are left out, wherever they stand."""

    @abstractmethod
    def open(
        self,
        model: Hookable,
        sites: Sequence[Site],
        tokens: TokenSource,
        *,
        batch_rows: int,
        special_ids: Sequence[int],
        seed: int,
        stopwatch: Stopwatch,
    ) -> ActivationSource:
        """The source at its start. Raises ValueError where the settings do not fit each other."""


@final
@dataclass(frozen=True, kw_only=True)
class LiveConfig(ActivationsConfig, kind="live"):
    """Activations computed as they are needed."""

    buffer_rows: int = 65536
    """Positions in the shuffle buffer, of all processes together; memory is this times the summed
    widths of the sites, times 4 bytes.
    """
    contexts_per_pass: int = 16
    """Contexts in one model pass."""
    scale_inputs: bool = True
    """Whether activations are scaled to a mean norm of sqrt(width)."""

    def __post_init__(self) -> None:
        check_counts(self, "buffer_rows", "contexts_per_pass")

    def open(
        self,
        model: Hookable,
        sites: Sequence[Site],
        tokens: TokenSource,
        *,
        batch_rows: int,
        special_ids: Sequence[int],
        seed: int,
        stopwatch: Stopwatch,
    ) -> "LiveSource":
        """The source at its start, its buffer empty until `prepare`."""
        size = dist.world().size
        own = replace(self, buffer_rows=-(-self.buffer_rows // size))
        if own.buffer_rows < batch_rows:
            of_all = size * batch_rows  # as the config counts them
            raise ValueError(
                f"activations.buffer_rows: {self.buffer_rows} is less than a batch of {of_all} "
                f"rows; give at least {16 * of_all} so that batches mix contexts, or lower "
                "trainer.batch_rows"
            )
        return LiveSource(
            own,
            model,
            sites,
            tokens,
            batch_rows=batch_rows,
            special_ids=special_ids,
            seed=seed,
            stopwatch=stopwatch,
        )


@final
class Passes:
    """Model passes over a token source, as rows: the positions that count, with the contexts they
    come from.
    """

    def __init__(
        self, config: LiveConfig, model: Hookable, sites: Sequence[Site], special_ids: Sequence[int]
    ):
        self.config, self.model, self.sites = config, model, list(sites)
        self.special_ids = torch.tensor(special_ids, dtype=torch.int64)
        order = list(model.sites())
        self.last = max(self.sites, key=order.index)

    @torch.no_grad()
    def rows(
        self, tokens: Int[Tensor, "batch pos"]
    ) -> tuple[dict[Site, Tensor], Int[Tensor, " rows"]]:
        """The activations of every counting position by site, and which of the contexts each
        belongs to.
        """
        # Found once, before the model runs: an accelerator would have to stop for it at every site.
        places = self.counting(tokens).flatten().nonzero().flatten()
        run = self.model.run(tokens, capture=self.sites, stop=self.last)
        acts = {
            site: run.acts[site].flatten(2).flatten(0, 1).index_select(0, places).float()
            for site in self.sites
        }
        return acts, places // tokens.shape[1]

    def counting(self, tokens: Int[Tensor, "batch pos"]) -> Tensor:
        """`[batch pos]`, true where the position is used."""
        counts = torch.ones_like(tokens, dtype=torch.bool)
        if self.config.drop_first_position:
            counts[:, 0] = False
        if self.config.drop_special_tokens:
            counts &= ~torch.isin(tokens, self.special_ids.to(tokens.device))
        return counts


def input_scale(site: Site, rows: Float[Tensor, "rows width"], config: LiveConfig) -> float:
    """What brings rows like these, of all processes, to a mean norm of sqrt(width); 1 if `config`
    scales nothing.

    Raises:
        ValueError: they cannot be scaled, or trained on.
    """
    norm = dist.mean(rows.norm(dim=-1).mean(dtype=widest_float(rows.device)).item())
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(
            f"sites: activations at {site!r} have mean norm {norm}; the model is broken there, "
            "choose other sites"
        )
    return math.sqrt(rows.shape[-1]) / norm if config.scale_inputs else 1.0


@final
class LiveSource(ActivationSource):
    """See the module's docstring."""

    def __init__(
        self,
        config: LiveConfig,
        model: Hookable,
        sites: Sequence[Site],
        tokens: TokenSource,
        *,
        batch_rows: int,
        special_ids: Sequence[int],
        seed: int,
        stopwatch: Stopwatch,
    ):
        """`model` gives the activations of `sites` on the contexts of `tokens`, on the device it
        lies on.
        """
        self.config, self.tokens, self.batch_rows = config, tokens, batch_rows
        self.drop_first_position = config.drop_first_position
        self.drop_special_tokens = config.drop_special_tokens
        self.widths = {site: model.width(site) for site in sites}
        self.scales: dict[Site, float] = {}
        self.passes = Passes(config, model, sites, special_ids)
        self.generator = torch.Generator().manual_seed(seed)
        self.stopwatch = stopwatch
        self.n_contexts_read = 0
        self._buffer: dict[Site, Tensor] = {}
        # The number of the context that each row of the buffer comes from.
        self._context = torch.empty(0, dtype=torch.int64)
        # Rows computed but not yet in the buffer: a pass yields more than a step takes.
        self._spare: dict[Site, Tensor] = {}
        self._spare_context = torch.empty(0, dtype=torch.int64)

    @property
    def n_bytes(self) -> int:
        """Memory of the buffer and of a pass waiting to go into it, at most."""
        waiting = self.config.contexts_per_pass * self.tokens.context_size
        return (self.config.buffer_rows + waiting) * (4 * sum(self.widths.values()) + 8)

    def prepare(self) -> None:
        """Fill the buffer and estimate the scales, unless that is done."""
        if self._buffer:
            return
        n = self.config.buffer_rows
        log.info(
            "shuffle buffer: %s positions at %d sites, %s MB on %s",
            f"{n:,}",
            len(self.widths),
            f"{self.n_bytes / 1e6:,.0f}",
            self._device,
        )
        buffer = {
            site: torch.empty(n, width, device=self._device) for site, width in self.widths.items()
        }
        self._context = torch.empty(n, dtype=torch.int64)
        self._fill(buffer, torch.arange(n))
        if not self.scales:  # otherwise rows are scaled already
            for site, rows in buffer.items():
                self.scales[site] = input_scale(site, rows, self.config)
                rows.mul_(self.scales[site])
        self._buffer = buffer

    def sample(self, site: Site, n_rows: int) -> Float[Tensor, "rows _"]:
        """Rows spread evenly over the buffer."""
        self.prepare()
        return self._buffer[site][:: max(1, self.config.buffer_rows // n_rows)][:n_rows]

    def __next__(self) -> Batch:
        """Random rows of the buffer, whose places new rows then take."""
        self.prepare()
        with self.stopwatch("buffer"):
            order = torch.randperm(self.config.buffer_rows, generator=self.generator)
            places = order[: self.batch_rows]
            n_contexts = self._context[places].unique().numel()
            acts = {site: rows[places.to(self._device)] for site, rows in self._buffer.items()}
        self._fill(self._buffer, places)
        return Batch(acts, n_contexts)

    def _fill(self, buffer: Mapping[Site, Tensor], places: Int[Tensor, " rows"]) -> None:
        """Put the next rows, in reading order, into these places; scaled, once scales are known."""
        n_filled = 0
        while n_filled < len(places):
            if len(self._spare_context) == 0:
                self._run_model()
            n = min(len(places) - n_filled, len(self._spare_context))
            with self.stopwatch("buffer"):
                now = places[n_filled : n_filled + n]
                self._context[now] = self._spare_context[:n]
                self._spare_context = self._spare_context[n:]
                now = now.to(self._device)
                for site, rows in self._spare.items():
                    buffer[site][now] = rows[:n] * self.scales.get(site, 1.0)
                    self._spare[site] = rows[n:]
            n_filled += n

    def _run_model(self) -> None:
        """The rows of the next pass become the spare ones."""
        for _ in range(MAX_EMPTY_PASSES):
            with self.stopwatch("tokens"):
                tokens = take(self.tokens, self.config.contexts_per_pass).to(self._device)
            with self.stopwatch("model forward"):
                self._spare, context = self.passes.rows(tokens)
            self._spare_context = context.cpu() + self.n_contexts_read
            self.n_contexts_read += len(tokens)
            if len(context) > 0:
                return
        raise ValueError(
            f"data: {MAX_EMPTY_PASSES * self.config.contexts_per_pass} contexts in a row hold "
            "nothing but special tokens; give other text, or activations.drop_special_tokens=false"
        )

    @property
    def _device(self) -> torch.device:
        return self.passes.model.device

    def state_dict(self) -> dict[str, Any]:
        """Buffer, spare rows, generator, scales and the position in the text."""
        return {
            "tokens": self.tokens.state_dict(),
            "generator": self.generator.get_state(),
            "n_contexts_read": self.n_contexts_read,
            "scales": self.scales,
            "buffer": self._buffer,
            "context": self._context,
            "spare": self._spare,
            "spare_context": self._spare_context,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position, as if never stopped."""
        device = self._device
        self.tokens.load_state_dict(state["tokens"])
        self.generator.set_state(state["generator"])
        self.n_contexts_read = state["n_contexts_read"]
        self.scales = dict(state["scales"])
        self._buffer = {site: rows.to(device) for site, rows in state["buffer"].items()}
        self._spare = {site: rows.to(device) for site, rows in state["spare"].items()}
        self._context, self._spare_context = state["context"], state["spare_context"]

    def continue_from(self, states: Sequence[dict[str, Any]]) -> None:
        """Fill the buffer anew from the first context that no process has read.

        What lay in the buffers is not trained on.
        """
        self.tokens.continue_from([state["tokens"] for state in states])
        self.scales = dict(states[0]["scales"])
        self.n_contexts_read = sum(state["n_contexts_read"] for state in states)
        self.generator.set_state(states[0]["generator"])
        self._buffer, self._spare = {}, {}
        self._spare_context = torch.empty(0, dtype=torch.int64)
