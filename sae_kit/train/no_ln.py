"""Removing a model's LayerNorms while it is fine-tuned: what is removed when, and what came of it.

    removal=gpt2        the schedule of Heimersheim 2024 (2409.13710), for GPT-2 small
    removal=demo        a shorter one, for the demo model

A schedule is a list of groups: one kind of norm, block after block, from a step on, some steps
apart. Every removal lifts the loss; fine-tuning brings it down again before the next. Where it has
not come down, the next removal, and with it all later ones, waits: the gap is lengthened, as long
as the last removal still comes before the last step. Scales are measured once, on the contexts of
the held-out loss, before the first step.

Source: Heimersheim 2024, and the schedule in its released code. The waiting is ours.

Limits: the loss of a step is needed before the next one, so a GPU is waited for at every step. What
one removal waits is not there for later ones, and where all the steps to spare are waited for, the
model takes a single step after the last removal: a loss that never comes down is left as it is.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, final

from jaxtyping import Int
from torch import Tensor

from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Edit, Site
from sae_kit.models.no_ln import EOT, FIRST, Removal, Scales, removable
from sae_kit.state import State

log = logging.getLogger(__name__)

Kind = Literal["ln2", "ln1.qk", "ln1.v", "ln_final", "eot", "first"]

SMOOTHING = 0.1
"""Weight of the newest loss in the running mean that tells whether the loss has recovered."""


@final
@dataclass(frozen=True, kw_only=True)
class RemovalGroup:
    """One kind of norm or special scale, removed block after block."""

    what: Kind
    """ln2; ln1.qk and ln1.v, the first norm for queries and keys, and for values; ln_final; eot and
    first, the special scales of end-of-text tokens' values and of position 0."""
    start: int
    """Steps before the first of them is removed, at least 1."""
    gap: int = 0
    """Steps between one and the next; those that a model has once have no next."""

    def __post_init__(self) -> None:
        if self.start < 1 or self.gap < 0:
            raise ValueError(
                f"start: {self.start} must be 1 or more (the loss before is what a removal is held "
                f"against), and gap {self.gap} 0 or more"
            )

    def names(self, n_layer: int) -> list[str]:
        """What it removes, as `sae_kit.models.no_ln` calls it."""
        if self.what in ("eot", "first"):
            return [EOT if self.what == "eot" else FIRST]
        if self.what == "ln_final":
            return ["ln_final"]
        return [f"blocks.{i}.{self.what}" for i in range(n_layer)]


@final
@dataclass(frozen=True, kw_only=True)
class RemovalConfig:
    """When what is removed."""

    groups: tuple[RemovalGroup, ...]
    """Together they remove everything, once."""
    tolerance: float = 0.1
    """Nats by which the loss may still be above where it was before the last removal."""
    patience: int = 100
    """Steps that one removal waits at most for the loss to recover; all of them together wait no
    longer than the run has steps for."""

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("groups: none; leave removal away to keep LayerNorm")
        if self.tolerance < 0 or self.patience < 0:
            raise ValueError(
                f"tolerance: {self.tolerance} (nats) and patience {self.patience} (steps) must be "
                "0 or more"
            )

    def events(self, n_layer: int) -> list["Event"]:
        """Every removal in a model of `n_layer` blocks, in order.

        Raises:
            ValueError: something is named twice or not at all, or values are removed before
                queries and keys.
        """
        events = [
            Event(group.start + i * group.gap, name)
            for group in self.groups
            for i, name in enumerate(group.names(n_layer))
        ]
        events.sort(key=lambda event: event.step)
        names = [event.name for event in events]
        twice = sorted({name for name in names if names.count(name) > 1})
        missing = sorted(removable(n_layer) - set(names))
        if twice or missing:
            wrong = f"{twice[0]!r} is there twice" if twice else f"{missing[0]!r} is missing"
            raise ValueError(f"removal.groups: {wrong}; every kind has one group")
        for i in range(n_layer):
            if names.index(f"blocks.{i}.ln1.v") < names.index(f"blocks.{i}.ln1.qk"):
                raise ValueError(
                    f"removal.groups: blocks.{i}.ln1.v is removed before blocks.{i}.ln1.qk; let "
                    "ln1.qk start earlier"
                )
        return events


@final
@dataclass(frozen=True)
class Event:
    """One removal as planned."""

    step: int
    """Steps taken before it, if nothing has to wait."""
    name: str


@final
@dataclass(frozen=True)
class Removed:
    """One removal as it happened."""

    step: int
    """Steps taken before it."""
    name: str
    loss_before: float
    """The running mean of the loss, in nats per token."""
    peak: float
    """The largest loss of a step before the next removal."""


# --- what the training task asks ------------------------------------------------------------------


class Norms(ABC):
    """What becomes of the norms of a model in training."""

    @abstractmethod
    def before(self, step: int) -> None:
        """Step number `step`, from 0, is about to be taken."""

    @abstractmethod
    def edits(self, tokens: Int[Tensor, "batch pos"]) -> Mapping[Site, Edit]:
        """The edits of a run on `tokens`."""

    @abstractmethod
    def after(self, loss: Tensor) -> Mapping[str, int | float]:
        """The step's loss; returns what to log."""

    @abstractmethod
    def finished(self, model: GPT2) -> GPT2:
        """The trained model as it is saved."""

    @abstractmethod
    def state_dict(self) -> State:
        """All that later steps depend on."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Continue exactly."""


@final
class KeepNorms(Norms):
    """Nothing becomes of them."""

    def before(self, step: int) -> None:
        """See Norms."""

    def edits(self, tokens: Int[Tensor, "batch pos"]) -> Mapping[Site, Edit]:
        """See Norms."""
        return {}

    def after(self, loss: Tensor) -> Mapping[str, int | float]:
        """See Norms."""
        return {}

    def finished(self, model: GPT2) -> GPT2:
        """See Norms."""
        return model

    def state_dict(self) -> State:
        """See Norms."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """See Norms."""


@final
class RemoveNorms(Norms):
    """They are removed one after another.

    Args:
        config: the schedule.
        model: the model, as it is before the first step.
        contexts: held-out text, on which the scales are measured.
        eot_id: the end-of-text token.
        n_steps: of the whole run.

    Raises:
        ValueError: the schedule does not fit the model or the run, or there is nothing to remove.
    """

    def __init__(
        self,
        config: RemovalConfig,
        model: GPT2,
        contexts: Int[Tensor, "batch pos"],
        *,
        eot_id: int,
        n_steps: int,
    ) -> None:
        self.config, self._model, self._eot_id = config, model, eot_id
        self.events = config.events(model.config.n_layer)
        if (last := self.events[-1]).step >= n_steps:
            raise ValueError(
                f"removal.groups: {last.name!r} is removed after {last.step} steps, but the run "
                f"has {n_steps}; raise lm.n_tokens, or start earlier"
            )
        self.scales = Scales.measure(model, contexts, eot_id=eot_id)
        self.done: list[Removed] = []
        self._n_spare = n_steps - 1 - last.step  # what the delay may come to
        self._delay = 0  # of all later removals, in steps
        self._waited = 0  # of it, by the next one
        self._loss: float | None = None  # running mean
        if config.patience > 0:
            self._say_if_spent()

    def before(self, step: int) -> None:
        """See Norms."""
        while len(self.done) < len(self.events):
            event = self.events[len(self.done)]
            if step < event.step + self._delay:
                return
            assert self._loss is not None, "nothing is removed before the first step"
            waits = self._loss > self._bound() and self._waited < self.config.patience
            if waits and self._delay < self._n_spare:
                self._delay += 1
                self._waited += 1
                self._say_if_spent()
                return
            self._waited = 0
            self.done.append(Removed(step, event.name, self._loss, self._loss))
            log.info("step %d: %s removed (loss %.3f)", step, event.name, self._loss)

    def edits(self, tokens: Int[Tensor, "batch pos"]) -> Mapping[Site, Edit]:
        """See Norms."""
        return self.removal.edits(self._model, tokens)

    def after(self, loss: Tensor) -> Mapping[str, int | float]:
        """See Norms."""
        value = float(loss)
        if self.done:
            last = self.done[-1]
            self.done[-1] = Removed(last.step, last.name, last.loss_before, max(last.peak, value))
        before = value if self._loss is None else self._loss
        self._loss = before + SMOOTHING * (value - before)
        return {"n_removed": len(self.done), "delay": self._delay}

    def finished(self, model: GPT2) -> GPT2:
        """See Norms: the model without LayerNorm.

        Raises:
            ValueError: the run has not come to its end, and some are left.
        """
        return self.removal.linear_copy(model)

    @property
    def removal(self) -> Removal:
        """What is removed by now."""
        names = frozenset(removed.name for removed in self.done)
        return Removal(self.scales, names, self._eot_id)

    def _say_if_spent(self) -> None:
        """Say that there is no step left to wait for; the delay comes to that only once."""
        if self._delay == self._n_spare:
            log.warning(
                "removals do not wait for the loss from here on: %r is due right before the last "
                "step; for more room, raise lm.n_tokens in a new run",
                self.events[-1].name,
            )

    def _bound(self) -> float:
        """Where the loss must have come down to before the next removal."""
        return self.done[-1].loss_before + self.config.tolerance if self.done else math.inf

    def state_dict(self) -> State:
        """See Norms."""
        return {
            "ordinary": dict(self.scales.ordinary),
            "first": dict(self.scales.first),
            "done": [asdict(removed) for removed in self.done],
            "delay": self._delay,
            "waited": self._waited,
            "loss": self._loss,
        }

    def load_state_dict(self, state: State) -> None:
        """See Norms."""
        self.scales = Scales(dict(state["ordinary"]), dict(state["first"]))
        self.done = [Removed(**removed) for removed in state["done"]]
        self._delay, self._waited, self._loss = state["delay"], state["waited"], state["loss"]
