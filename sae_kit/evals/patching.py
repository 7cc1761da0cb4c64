"""patching: which parts of a model matter for a behaviour, and how one should read that.

A behaviour is a task: prompts with an answer, and corrupted twins that lack what the answer needs.
Activations are exchanged between their runs, one unit at a time, in both directions (`scenes.py`),
and the logits are measured by all metrics side by side (`answers.py`):

- effects of units: residual stream, attention and MLP outputs by layer and position; heads (z, q,
  k, v, pattern); whole MLPs; neurons; SAEs' latents, reconstructions and errors (`units.py`)
- the same to first order (attribution patching), and how far that is from exact
- paths: what senders do through the input of one receiver, noising (`path_patching.py`)
- a circuit: is it enough, is it needed, is any of it too much, what does size buy
  (`faithfulness.py`)

Units are found on `n_prompts` pairs; the largest effects, and everything about the circuit, are
measured again on `n_heldout` others.

Kinds of rows: unit, top, attribution (`effects.py`); path: direction, path (direct, total),
receiver, sender, score, low, high; set, size, minimality (`faithfulness.py`). Arrays:
`<direction>/<units>`, the chosen metric of every unit and pair, `[units pairs]`, in the rows'
order; `<direction>/<units>/attribution`.

A score is 0 where nothing was recovered (denoising) or lost (noising), and 1 where everything was.

Source: Heimersheim and Nanda 2024, "How to use and interpret activation patching" (2404.15255).

Limits: components that clean and corrupted prompts have in common are not seen; backup heads make
noising underestimate; a late residual stream at the last position scores 1 whatever the model does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from sae_kit.config import check_counts
from sae_kit.data.pairs import Pairs, draw_pairs
from sae_kit.data.tokens import check_context
from sae_kit.evals.base import Evaluation, Subject
from sae_kit.evals.patches.component_sets import Components, random_sets
from sae_kit.evals.patches.effects import Effects, score_of
from sae_kit.evals.patches.faithfulness import Faithfulness, ranked
from sae_kit.evals.patches.patch_bench import Bench
from sae_kit.evals.patches.path_patching import PATHS, Senders, check_receivers, effects, receivers
from sae_kit.evals.patches.scenes import DIRECTIONS
from sae_kit.evals.patches.units import KINDS, check_kinds
from sae_kit.evals.shared.ablations import ABLATIONS, Ablation, check_ablation
from sae_kit.evals.shared.answers import check_metric
from sae_kit.result import Result

if TYPE_CHECKING:
    import matplotlib.figure

COMPONENTS = ("head_z", "mlp")
"""The kinds of units that circuits are made of."""
PATH_DIRECTION = "noising"
"""One path alone is seldom enough for anything: a head needs its queries, keys and values."""
N_RECEIVER_HEADS = 2
"""Heads whose inputs are receivers, if none are named."""

Row = dict[str, Any]
Found = Mapping[str, Mapping[str, Effects]]
"""By direction, by word."""


@final
@dataclass(frozen=True, kw_only=True)
class Patching(Evaluation, name="patching"):
    """Effects of parts of a model on a task, one by one, along paths, and as a circuit."""

    task: str = "ioi"
    """ioi, greater_than, docstring, induction, or a .jsonl file of pairs (`prompt_file.py`)."""
    n_prompts: int = 32
    """Pairs that components are looked for on."""
    n_heldout: int = 32
    """Other pairs, that they are confirmed on."""
    metric: str = "logit_difference"
    """Whose scores rank; all are measured: see answers.py."""
    ablation: str = "corrupt"
    """What "corrupted" is: corrupt, resample, mean, zero, gaussian (`ablations.py`)."""
    units: tuple[str, ...] | None = None
    """Kinds to exchange (`units.py`), heads and MLPs always; None: all that there are."""
    n_top: int = 20
    """Units of a kind that are measured again; neurons and latents that are patched at all."""
    receivers: tuple[str, ...] | None = None
    """Whose inputs paths lead to ("a3.2.q", "m4", "logits"); None: the final stream, and the
    queries, keys and values of the heads of largest effect."""
    circuit: tuple[str, ...] | None = None
    """Components ("a3.2", "m4") to ask about; None: the shortest ranking that carries `enough`."""
    enough: float = 0.9
    """Of the score, for a circuit that is looked for."""
    n_random_sets: int = 3
    """Of as many components, to compare the circuit with."""

    def __post_init__(self) -> None:
        check_counts(self, "n_prompts", "n_heldout", "n_top", "n_random_sets")
        check_metric(self.metric)
        check_ablation(self.ablation)
        if self.units is not None:
            check_kinds(self.units)
        if self.circuit is not None and not self.circuit:
            raise ValueError("circuit: empty; give components, or null to look for one")
        if not 0 < self.enough <= 1:
            raise ValueError(f"enough: {self.enough} is no share; give one above 0, up to 1")

    @torch.no_grad()
    def run(self, subject: Subject) -> Result:
        """See Evaluation.run: rows of units, top lists, attribution, paths, sets."""
        words = self._words(subject)
        first, second = self._pairs(subject)
        components = Components(subject.model, first)
        components.check(self.circuit or ())
        check_receivers(self.receivers or (), subject.model)
        both = [self._ablation(subject, pairs) for pairs in (first, second)]
        bench, heldout = (
            self._bench(subject, pairs, words, ablation)
            for pairs, ablation in zip((first, second), both, strict=True)
        )
        found = self._effects(bench)
        by_kind = [own for by_word in found.values() for own in by_word.values()]
        rows = [row for own in by_kind for row in own.rows()]
        rows += [row for own in by_kind for row in own.top_rows(heldout, self.n_top)]
        rows += [row for own in by_kind for row in own.attribution_rows()]
        ranking = ranked(_best(found, "score"))
        rows += self._path_rows(bench, self._receivers(subject, ranking))
        rows += self._circuit_rows(components, found, ranking, bench, heldout, subject.seed)
        return Result(
            name=self.word,
            scalars=_scalars(bench, rows),
            rows=rows,
            arrays=_arrays(found),
            provenance=self.provenance(subject),
        )

    def _words(self, subject: Subject) -> list[str]:
        """The kinds of units, after a check that the subject has what they are of."""
        able = [word for word, kind in KINDS.items() if subject.saes or not kind.needs_saes]
        wanted = able if self.units is None else self.units
        words = [word for word in KINDS if word in COMPONENTS or word in wanted]
        needing = [word for word in words if KINDS[word].needs_saes]
        if needing and not subject.saes:
            raise ValueError(
                f"units: {needing[0]} is of SAEs, and there are none; give run or saes"
            )
        if needing:
            subject.check_saes()
            for site, sae in subject.saes.items():
                if sae.is_transcoder:
                    raise ValueError(
                        f"units: {needing[0]} takes an activation apart, and the one at {site} is "
                        "a transcoder; give autoencoders"
                    )
        return words

    def _pairs(self, subject: Subject) -> tuple[Pairs, Pairs]:
        """Those to find components on, and those to confirm them on."""
        pairs = draw_pairs(
            self.task,
            subject.language_model.tokenizer,
            n=self.n_prompts,
            n_heldout=self.n_heldout,
            n_vocab=subject.model.config.n_vocab,
            prepend_bos=subject.tokens.prepend_bos,
            seed=subject.seed,
        )
        check_context(pairs[0].n_pos, subject.model.n_ctx)
        return pairs[0].to(subject.device), pairs[1].to(subject.device)

    def _ablation(self, subject: Subject, pairs: Pairs) -> Ablation:
        return ABLATIONS[self.ablation](len(pairs), seed=subject.seed)

    def _bench(
        self, subject: Subject, pairs: Pairs, words: Sequence[str], ablation: Ablation
    ) -> Bench:
        return Bench(
            subject.model,
            pairs,
            subject.saes,
            kinds=words,
            ablation=ablation,
            metric=self.metric,
            seed=subject.seed,
            also={receiver.site for receiver in receivers(subject.model).values()},
        )

    def _effects(self, bench: Bench) -> Found:
        found: dict[str, dict[str, Effects]] = {}
        for direction in DIRECTIONS:
            attributions = bench.attributions(direction)
            found[direction] = {
                word: Effects.of(bench, direction, word, own, n_screened=self.n_top)
                for word, own in attributions.items()
                if own
            }
        return found

    def _receivers(self, subject: Subject, ranking: Sequence[str]) -> tuple[str, ...]:
        if self.receivers is not None:
            return self.receivers
        # What a head of block 0 reads is the embedding, whatever it does.
        heads = [name for name in ranking if name.startswith("a") and not name.startswith("a0.")]
        inputs = (f"{head}.{part}" for head in heads[:N_RECEIVER_HEADS] for part in "qkv")
        return (*inputs, "logits")

    def _path_rows(self, bench: Bench, names: Sequence[str]) -> Iterator[Row]:
        known, scene = receivers(bench.stage.model), bench.scenes[PATH_DIRECTION]
        senders = Senders(scene)
        for name in names:
            for word, path in PATHS.items():
                measured = {
                    sender: bench.scorer.measure(logits)
                    for sender, logits in effects(senders, known[name], path())
                }
                scored = bench.scorer.scored(scene.direction, list(measured.values()))
                for i, sender in enumerate(measured):
                    yield {
                        "kind": "path",
                        "direction": PATH_DIRECTION,
                        "path": word,
                        "receiver": name,
                        "sender": sender,
                        **score_of(scored, i, bench.scorer.place),
                    }

    def _circuit_rows(
        self,
        components: Components,
        found: Found,
        ranking: Sequence[str],
        bench: Bench,
        heldout: Bench,
        seed: int,
    ) -> Iterator[Row]:
        """Of the circuit that is named, or else found on the first pairs."""
        by_pairs = {
            "first": Faithfulness(bench, components),
            "heldout": Faithfulness(heldout, Components(heldout.stage.model, heldout.stage.pairs)),
        }
        circuit = list(self.circuit or by_pairs["first"].shortest(ranking, self.enough))
        names, n_sets = components.names, self.n_random_sets
        drawn = list(random_sets(names, len(circuit), n_sets, seed=seed))
        for pairs, faithfulness in by_pairs.items():
            yield from faithfulness.set_rows(circuit, drawn, pairs=pairs)
        orders = random_sets(names, len(names), n_sets, seed=seed)
        rankings = {
            "by effect": ranking,
            "by attribution": ranked(_best(found, "attribution")),
            **{f"random {i}": order for i, order in enumerate(orders, 1)},
        }
        yield from by_pairs["heldout"].size_rows(rankings)
        yield from by_pairs["heldout"].minimality_rows(circuit)

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """See Evaluation.plot: `positions`, `heads`, `top`, `directions`, `paths`, `attribution`,
        `sizes`, `circuit`.
        """
        from sae_kit.viz import patching

        return patching.figures(result)


def _best(found: Found, what: str) -> dict[str, list[float]]:
    """The scores of every component in all directions, exact or attributed."""
    both: dict[str, list[float]] = {}
    for by_word in found.values():
        for word in COMPONENTS:
            own = by_word[word]
            for name, value in zip(own.names, getattr(own, what).tolist(), strict=True):
                both.setdefault(name, []).append(value)
    return both


def _arrays(found: Found) -> dict[str, Tensor]:
    arrays: dict[str, Tensor] = {}
    for direction, by_word in found.items():
        for word, own in by_word.items():
            arrays[f"{direction}/{word}"] = own.by_pair
            arrays[f"{direction}/{word}/attribution"] = own.attribution
    return arrays


def _scalars(bench: Bench, rows: Sequence[Row]) -> dict[str, int | float]:
    """The metrics of unpatched runs, and what the circuit does on held-out pairs."""
    scalars: dict[str, int | float] = {}
    for what, draws in (("clean", bench.scorer.clean), ("corrupt", bench.scorer.broken)):
        for name, value in zip(bench.scorer.metrics, draws[0].tolist(), strict=True):
            scalars[f"{name}_{what}"] = value
    for row in rows:
        if row["kind"] == "set" and (row["set"], row["pairs"]) == ("circuit", "heldout"):
            scalars["n_circuit"] = row["n_components"]
            scalars[row["question"]] = row["answer"]
    return scalars
