"""Where patching happens: runs of clean and corrupted prompts, and runs with something exchanged.

Two directions (Heimersheim and Nanda 2024, 2404.15255, section 2), which are no mirror images:

- denoising: a corrupted run gets clean activations. Which are *enough* to bring the answer back?
- noising: a clean run gets corrupted activations. Which are *needed* for the answer?

Of two parts that are needed together (AND), noising finds each and denoising neither; of two of
which one is enough (OR), denoising finds each and noising neither.

What "corrupted" is, an ablation says (`ablations.py`), in both directions alike: noised units get
their ablated values, and the corrupted run, from which denoising starts and which marks 0 on the
scale of scores, is the clean prompt's with its embeddings ablated at the positions at which the two
prompts differ. For ablation "corrupt" that is the corrupted prompt's run.

Nothing is computed twice: a run starts at the residual-stream site before what was exchanged, at
the first position at which anything changed, behind kept keys and values of the run it departs
from; logits are computed at the last position only; units that change at the same position run
together.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_kit.data.pairs import Pairs
from sae_kit.evals.patches.units import Units
from sae_kit.evals.perturb.hosts import first_block
from sae_kit.evals.shared.ablations import Ablation
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Edit, Prefix, Site

EMBED = "hook_embed"
MAX_POSITIONS = 1 << 13
"""Positions in one run, at most, one unit aside."""
MAX_LOGITS = 1 << 24
"""Logits computed at once, at most, one unit aside (64 MiB in float32)."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)  # eq: tensors have no single truth value
class Recorded:
    """A run over all pairs, from which others depart."""

    acts: Mapping[Site, Tensor]
    """`[pairs *axes]`, by site; every residual-stream site is there."""
    prefix: Prefix
    """Keys and values of all positions."""
    logits: Float[Tensor, "pairs vocab"]
    """At the last position."""


@final
@dataclass(frozen=True, eq=False)
class Part:
    """Some units of one site, to be exchanged together with others."""

    units: Units
    source: Float[Tensor, "pairs *value"]
    """As `Scene.source`."""
    chosen: Sequence[int]

    def exchange(self, act: Tensor) -> Tensor:
        """The activation with these units exchanged: an Edit."""
        return self.units.patched(act, self.source, self.chosen)


@final
class Stage:
    """A model with what is known of its sites: records runs, and continues them."""

    def __init__(self, model: GPT2, pairs: Pairs) -> None:
        self.model, self.pairs = model, pairs
        self.order = list(model.sites())
        self.stream = [site for site in self.order if ".hook_resid_" in site]

    def record(
        self,
        tokens: Tensor,
        sites: Collection[Site],
        edit: Mapping[Site, Edit] | None = None,
    ) -> Recorded:
        """A run with the residual stream and `sites` captured."""
        patterns = [site for site in sites if site.endswith("hook_pattern")]
        capture = [site for site in (*self.stream, *sites) if site not in patterns]
        end = self.stream[-1]
        run = self.model.run(tokens, capture=capture, edit=edit, stop=end, keep_prefix=True)
        acts = dict(run.acts)
        if patterns:
            # By themselves: where a pattern is looked at, attention rounds otherwise.
            acts |= self.model.run(tokens, capture=patterns, edit=edit, stop=end).acts
        assert run.prefix is not None
        return Recorded(acts=acts, prefix=run.prefix, logits=self.logits(acts[end]))

    def logits(self, stream: Float[Tensor, "rows pos d_model"]) -> Float[Tensor, "rows vocab"]:
        """The logits at the last position, given the last residual stream."""
        logits = self.model.run(start=(self.stream[-1], stream[:, -1:])).logits
        assert logits is not None
        return logits[:, -1]

    def entry(self, site: Site) -> Site:
        """The last residual-stream site from which a run still reaches `site`."""
        place = self.order.index(site)
        reached = [entry for entry in self.stream if self.order.index(entry) <= place]
        return reached[-1] if reached else self.stream[0]

    def changed(self, site: Site, a: Tensor, b: Tensor) -> Bool[Tensor, " pos"]:
        """The positions at which two activations differ, in any pair and channel."""
        axis = self.model.sites()[site].index("pos")
        return (a != b).movedim(axis, 0).flatten(1).any(1)

    def since(self, site: Site, act: Tensor, first: int) -> Tensor:
        """An activation from a position on."""
        axis = self.model.sites()[site].index("pos")
        return act.narrow(axis, first, act.shape[axis] - first)

    def prefix(self, recorded: Recorded, start: Site, first: int, n: int) -> Prefix | None:
        """What stands before `first` in a recorded run, for `n` runs in a row that enter at
        `start`.
        """
        if first == 0:
            return None
        # Behind the last attention no keys are needed, and a prefix without any has no contexts.
        block = min(first_block(start), self.model.config.n_layer - 1)
        prefix = recorded.prefix.since(block).first(first)
        index = torch.arange(len(self.pairs), device=self.model.device)
        return prefix if n == 1 else prefix.rows(index.repeat(n))


@final
class Scene:
    """One direction of patching: a recorded run, and where exchanged values come from."""

    def __init__(
        self, stage: Stage, direction: "Direction", runs: "Runs", ablation: Ablation
    ) -> None:
        self.stage, self.direction, self.runs = stage, direction, runs
        self.base = direction.base(runs)
        self._ablation = ablation

    def source(self, units: Units) -> Tensor:
        """The values that these units are exchanged for, `[pairs *value]`."""
        clean, corrupt = (
            units.value(run.acts[units.site]) for run in (self.runs.clean, self.runs.corrupt)
        )
        ablated = self._ablation.of(f"{units.word}/{units.site}", clean, corrupt)
        return self.direction.source(clean, ablated)

    def each(self, units: Units, chosen: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Every chosen unit with the logits `[pairs vocab]` that come of exchanging it alone.

        In whatever order costs least.
        """
        act, source = self.base.acts[units.site], self.source(units)
        waiting: dict[int, list[tuple[int, Tensor]]] = {}
        for unit in chosen:
            patched = units.patched(act, source, [unit])
            changed = self.stage.changed(units.site, patched, act)
            if not changed.any():
                yield unit, self.base.logits
                continue
            first = int(changed.nonzero()[0])
            group = waiting.setdefault(first, [])
            group.append((unit, self.stage.since(units.site, patched, first)))
            if len(group) == self.n_at_once(first):
                yield from self._run_group(units.site, waiting.pop(first), first)
        for first, group in waiting.items():
            yield from self._run_group(units.site, group, first)

    def jointly(self, parts: Sequence["Part"]) -> Tensor:
        """The logits `[pairs vocab]` that come of exchanging units of several sites at once.

        Later ones are exchanged in what the run has made of the earlier ones. The sites differ.
        """
        edits = {part.units.site: part.exchange for part in parts if part.chosen}
        if not edits:
            return self.base.logits
        start = self.stage.entry(min(edits, key=self.stage.order.index))
        return self.run_from(start, self.base.acts[start], edits, first=0)

    def run_from(
        self,
        start: Site,
        x: Float[Tensor, "rows pos d_model"],
        edits: Mapping[Site, Edit] | None = None,
        *,
        first: int,
    ) -> Float[Tensor, "rows vocab"]:
        """The logits of runs entered with `x` at the positions from `first` on.

        The rows are all pairs, once or several times over.
        """
        end = self.stage.stream[-1]
        run = self.stage.model.run(
            start=(start, x),
            edit=edits,
            stop=end,
            capture=[end],
            prefix=self.stage.prefix(self.base, start, first, len(x) // len(self.stage.pairs)),
        )
        return self.stage.logits(run.acts[end])

    def n_at_once(self, first: int = 0) -> int:
        """How many runs over all pairs, from position `first` on, are made together."""
        n_rows = len(self.stage.pairs)
        n_positions = n_rows * (self.stage.pairs.n_pos - first)
        n_logits = n_rows * self.stage.model.config.n_vocab
        return max(1, min(MAX_POSITIONS // n_positions, MAX_LOGITS // n_logits))

    def _run_group(
        self, site: Site, group: Sequence[tuple[int, Tensor]], first: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Units with their activations at `site`, from position `first` on."""
        numbers, acts = zip(*group, strict=True)
        logits = self.run_with(site, torch.cat(acts), first=first)
        yield from zip(numbers, logits.split(len(self.stage.pairs)), strict=True)

    def run_with(
        self, site: Site, x: Float[Tensor, "rows *axes"], *, first: int
    ) -> Float[Tensor, "rows vocab"]:
        """The logits of runs in which the activation at `site` is `x` from `first` on.

        The rows are all pairs, once or several times over.
        """
        start = self.stage.entry(site)
        n = len(x) // len(self.stage.pairs)
        if start == site:
            return self.run_from(start, x, first=first)
        stream = self.base.acts[start][:, first:].repeat(n, 1, 1)
        written = ("hook_attn_out", "hook_mlp_out")
        if site.endswith(written):  # is added to the stream: what comes before is known
            after = self.stage.stream[self.stage.stream.index(start) + 1]
            return self.run_from(after, stream + x, first=first)
        return self.run_from(start, stream, {site: lambda _: x}, first=first)


# --- directions -----------------------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Runs:
    """The runs of all pairs that patching goes between."""

    clean: Recorded
    corrupt: Recorded
    """Of the corrupted prompts."""
    broken: Recorded
    """Of the clean prompts with ablated embeddings: where denoising starts."""

    @staticmethod
    def of(stage: Stage, ablation: Ablation, sites: Collection[Site]) -> "Runs":
        """Those of a stage's pairs, with `sites` captured."""
        pairs = stage.pairs
        differ = (pairs.clean != pairs.corrupt)[..., None]
        clean, corrupt = (
            stage.record(tokens, [EMBED, *sites]) for tokens in (pairs.clean, pairs.corrupt)
        )
        ablated = ablation.of(EMBED, clean.acts[EMBED], corrupt.acts[EMBED])
        edit = {EMBED: lambda x: torch.where(differ, ablated, x)}
        return Runs(clean=clean, corrupt=corrupt, broken=stage.record(pairs.clean, sites, edit))

    def scenes(self, stage: Stage, ablation: Ablation) -> dict[str, Scene]:
        """One for each direction, by its word."""
        return {
            word: Scene(stage, direction(), self, ablation)
            for word, direction in DIRECTIONS.items()
        }


class Direction(ABC):
    """Which run is patched with which values, and how far that got on the scale from 0 to 1."""

    word: ClassVar[str]

    @abstractmethod
    def base(self, runs: Runs) -> Recorded:
        """The run that is patched."""

    @abstractmethod
    def source(self, clean: Tensor, ablated: Tensor) -> Tensor:
        """What is put into it."""

    @abstractmethod
    def start(self, clean: Tensor, broken: Tensor) -> Tensor:
        """The metric of the run that is patched."""

    @abstractmethod
    def score(self, patched: Tensor, clean: Tensor, broken: Tensor) -> Tensor:
        """The share of the clean metric that was recovered, or lost. All three are means."""


@final
class Denoising(Direction):
    """0: as the corrupted run; 1: as the clean one."""

    word = "denoising"

    def base(self, runs: Runs) -> Recorded:
        """See Direction."""
        return runs.broken

    def source(self, clean: Tensor, ablated: Tensor) -> Tensor:
        """See Direction."""
        return clean

    def start(self, clean: Tensor, broken: Tensor) -> Tensor:
        """See Direction."""
        return broken

    def score(self, patched: Tensor, clean: Tensor, broken: Tensor) -> Tensor:
        """See Direction."""
        return (patched - broken) / (clean - broken)


@final
class Noising(Direction):
    """0: as the clean run; 1: as the corrupted one."""

    word = "noising"

    def base(self, runs: Runs) -> Recorded:
        """See Direction."""
        return runs.clean

    def source(self, clean: Tensor, ablated: Tensor) -> Tensor:
        """See Direction."""
        return ablated

    def start(self, clean: Tensor, broken: Tensor) -> Tensor:
        """See Direction."""
        return clean

    def score(self, patched: Tensor, clean: Tensor, broken: Tensor) -> Tensor:
        """See Direction."""
        return (clean - patched) / (clean - broken)


DIRECTIONS: dict[str, type[Denoising] | type[Noising]] = {
    direction.word: direction for direction in (Denoising, Noising)
}
"""By their words."""
