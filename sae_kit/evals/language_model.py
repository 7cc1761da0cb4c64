"""language_model: how well a model predicts text, and whether it has the circuits we look for.

No SAEs are needed. On held-out text: cross-entropy and bits per byte, for every set of text that is
named. On held-out prompts (`sae_kit.data.prompts`, which names the sources):

- induction: a random token sequence twice over. Cross-entropy of the same tokens in the first and
  in the second half, their difference, and how often the second half's next token is the likeliest.
  The first token of each half is left out: nothing announces it.
- ioi: whether the indirect object's logit is above the subject's, and by how much.
- greater_than: probability of the years above the start year, less that of the others.
- docstring: whether the right argument's logit is above those of the five other ones.

Every figure is a mean with its 95 % bootstrap interval over contexts, sequences or prompts.
Prompts get a BOS token in front where the subject's text has one.

Limits: bits per byte compares models with different tokenizers on the same text, but their contexts
differ. End-of-text tokens count in the cross-entropy, as in training, but have no bytes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.data.docs import DocsConfig
from sae_kit.data.prompts import (
    DocstringArguments,
    GreaterThan,
    IndirectObject,
    Induction,
    Prompt,
    PromptFamily,
)
from sae_kit.data.text import TextConfig
from sae_kit.data.tokens import TokensConfig
from sae_kit.evals.base import Evaluation, Subject
from sae_kit.log import Progress
from sae_kit.maths import bootstrap_interval, cross_entropy_rows
from sae_kit.models.tokenizer import Tokenizer
from sae_kit.result import Result

if TYPE_CHECKING:
    import matplotlib.figure

Task = Literal["induction", "ioi", "greater_than", "docstring"]
TASKS: tuple[Task, ...] = get_args(Task)
SENTENCES: dict[Task, Callable[[Tokenizer], PromptFamily]] = {
    "ioi": IndirectObject,
    "greater_than": GreaterThan,
    "docstring": DocstringArguments,
}
HISTOGRAMS = {
    "ioi_logit_difference": (
        "indirect objects",
        "logit of the indirect object less that of the subject (nats)",
    ),
    "greater_than_mass_difference": (
        "greater-than",
        "probability of later years less that of the others",
    ),
    "docstring_logit_difference": (
        "docstring arguments",
        "logit of the right argument less the best other's (nats)",
    ),
}
"""Arrays of a result that are drawn as histograms: what they are of, and their values."""


@final
@dataclass(frozen=True, kw_only=True)
class LanguageModelEvaluation(Evaluation, name="language_model"):
    """Held-out loss and known-answer prompts of a language model."""

    docs: bool = True
    """Whether to measure on the docstrings of the installed packages."""
    text_paths: tuple[str, ...] = ()
    """Text files to measure on as well; as `paths` of data=text."""
    text_heldout: tuple[str, ...] = ()
    """As `heldout_paths` of data=text: whole files that were held out; none: 2 % of every file."""
    n_tokens: int = 65_536
    """Held-out tokens per set of text, or what there is."""
    tasks: tuple[Task, ...] = TASKS
    """Which prompts to try."""
    n_prompts: int = 500
    """Prompts, or random sequences, per task."""
    induction_length: int = 50
    """Tokens of a random sequence before it repeats."""

    def __post_init__(self) -> None:
        for name in ("n_tokens", "n_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")
        if self.induction_length < 2:
            raise ValueError(
                f"induction_length: {self.induction_length}; a sequence to repeat has 2 or more"
            )

    @torch.no_grad()
    def run(self, subject: Subject) -> Result:
        """See Evaluation.run: one row per figure, which is a scalar of the same name as well."""
        # Everything that can be refused comes before everything that takes time.
        texts = {
            name: subject.contexts(self.n_tokens, tokens)
            for name, tokens in self.texts(subject.tokens).items()
        }
        prompts: dict[Task, list[Prompt]] = {
            task: self._prompts(task, subject) for task in self.tasks if task in SENTENCES
        }
        sequences = self._sequences(subject) if "induction" in self.tasks else None

        figures = Figures(subject.seed)
        progress = Progress(sum(contexts.numel() for contexts in texts.values()))
        for name, contexts in texts.items():
            _measure_text(figures, name, subject, contexts, progress)
        progress.close()
        if sequences is not None:
            _measure_induction(figures, subject, sequences)
        for task, family_prompts in prompts.items():
            _measure_prompts(figures, task, subject, family_prompts)
        return Result(
            name=self.word,
            scalars={row["figure"]: row["value"] for row in figures.rows},
            rows=figures.rows,
            arrays=figures.arrays,
            provenance=self.provenance(subject),
        )

    def texts(self, own: TokensConfig) -> dict[str, TokensConfig]:
        """The sets of text by name, all cut into contexts as the subject's `own` text is.

        That one is measured too, unless one of its kind is named in this config.
        """
        cut: dict[str, Any] = {"context_size": own.context_size, "prepend_bos": own.prepend_bos}
        texts: dict[str, TokensConfig] = {}
        if self.docs:
            texts["docs"] = DocsConfig(**cut)
        if self.text_paths:
            texts["text"] = TextConfig(
                paths=self.text_paths, heldout_paths=self.text_heldout, **cut
            )
        return texts if own.word in texts else {own.word: own, **texts}

    def _prompts(self, task: Task, subject: Subject) -> list[Prompt]:
        """Held-out prompts, with BOS in front where the subject's text has one."""
        try:
            family = SENTENCES[task](subject.language_model.tokenizer)
        except ValueError as error:
            rest = [other for other in self.tasks if other != task]
            raise ValueError(f"tasks: {error}; leave {task} out (eval.tasks={rest})") from error
        prompts = [_with_bos(p, subject) for p in family.prompts(self.n_prompts, seed=subject.seed)]
        longest = max(len(prompt.clean) for prompt in prompts)
        if longest > subject.model.n_ctx:
            raise ValueError(
                f"tasks: {task} has prompts of {longest} tokens, but the model's context holds "
                f"{subject.model.n_ctx}; leave it out"
            )
        return prompts

    def _sequences(self, subject: Subject) -> Int[Tensor, "batch pos"]:
        """Random sequences twice over."""
        family = Induction(subject.language_model.tokenizer, length=self.induction_length)
        prompts = [_with_bos(p, subject) for p in family.prompts(self.n_prompts, seed=subject.seed)]
        sequences = torch.tensor([(*prompt.clean, *prompt.answers) for prompt in prompts])
        if sequences.shape[1] > subject.model.n_ctx:
            raise ValueError(
                f"induction_length: {self.induction_length} twice over is longer than the model's "
                f"context of {subject.model.n_ctx} tokens; give at most "
                f"{(subject.model.n_ctx - 1) // 2}"
            )
        return sequences

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """See Evaluation.plot: the losses, and what the prompts show, where they were tried."""
        from sae_kit.viz import plots

        model = result.provenance["subject"]["model"]
        arrays, figures = result.arrays, {}
        losses = [
            {**row, "text": row["figure"].removesuffix("_ce")}
            for row in result.rows
            if row["figure"].endswith("_ce")
        ]
        figures["cross_entropy"] = plots.bars(
            losses,
            name="text",
            unit="cross-entropy (nats per token)",
            title=f"{model} on held-out text",
        )
        if "induction_ce" in arrays:
            loss = arrays["induction_ce"]
            figures["induction"] = plots.by_position(
                {"mean over sequences, 95 % interval": loss},
                first=1,
                labels=("position (tokens)", "cross-entropy (nats)"),
                marks={"first token of the repeat": (loss.shape[1] + 1) / 2},
                title=f"{model} on random tokens twice over",
            )
        for name, (title, label) in HISTOGRAMS.items():
            if name in arrays:
                figures[name] = plots.histogram(
                    arrays[name], label=label, unit_name="prompts", title=f"{model}: {title}"
                )
        return figures


@final
class Figures:
    """The figures measured so far, and the values behind those that are drawn."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rows: list[dict[str, Any]] = []
        self.arrays: dict[str, Tensor] = {}

    def add(self, figure: str, unit: str, values: Float[Tensor, " n"]) -> None:
        """The mean of independent values, with its interval."""
        interval = bootstrap_interval(values, seed=self.seed)
        self.rows.append(
            {
                "figure": figure,
                "value": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "unit": unit,
                "n": len(values),
            }
        )


def _with_bos(prompt: Prompt, subject: Subject) -> Prompt:
    bos = (subject.language_model.tokenizer.eot_id,) if subject.tokens.prepend_bos else ()
    return replace(prompt, clean=(*bos, *prompt.clean), positions={})


def _measure_text(
    figures: Figures,
    name: str,
    subject: Subject,
    contexts: Int[Tensor, "batch pos"],
    progress: Progress,
) -> None:
    """Cross-entropy and bits per byte on one set of text."""
    tokenizer = subject.language_model.tokenizer
    losses = []
    for tokens in contexts.split(subject.contexts_per_pass(contexts.shape[1])):
        losses.append(_losses(subject, tokens))
        progress.update(tokens.numel())
    loss = torch.cat(losses)
    n_bytes = sum(_n_bytes(tokenizer, row) for row in contexts[:, 1:].tolist())
    bits = loss.sum(1) * len(contexts) / (math.log(2) * n_bytes)
    figures.add(f"{name}_ce", "nats/token", loss.mean(1))
    figures.add(f"{name}_bits_per_byte", "bits/byte", bits)


def _n_bytes(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """Bytes of text in `ids`; a character cut in two at an end counts as three."""
    return len(tokenizer.decode(i for i in ids if i != tokenizer.eot_id).encode())


def _measure_induction(
    figures: Figures, subject: Subject, sequences: Int[Tensor, "batch pos"]
) -> None:
    """Losses of the same tokens before and after they repeat."""
    n_bos = int(subject.tokens.prepend_bos)
    length = (sequences.shape[1] - n_bos) // 2
    losses, hits = [], []
    for tokens in sequences.split(subject.contexts_per_pass(sequences.shape[1])):
        logits = _logits(subject, tokens[:, :-1])
        targets = tokens[:, 1:].to(logits.device)
        losses.append(cross_entropy_rows(logits, targets).double().cpu())
        hits.append((logits.argmax(-1) == targets).double().cpu())
    loss, hit = torch.cat(losses), torch.cat(hits)
    # A prediction's index is its target's less one; each half's first token is left out.
    first = slice(n_bos, n_bos + length - 1)
    second = slice(n_bos + length, n_bos + 2 * length - 1)
    figures.add("induction_ce_first", "nats/token", loss[:, first].mean(1))
    figures.add("induction_ce_second", "nats/token", loss[:, second].mean(1))
    figures.add("induction_ce_drop", "nats/token", loss[:, first].mean(1) - loss[:, second].mean(1))
    figures.add("induction_copy_accuracy", "share", hit[:, second].mean(1))
    figures.arrays["induction_ce"] = loss[:, n_bos:]  # targets 1 .. 2 length - 1 of the sequence


def _measure_prompts(
    figures: Figures, task: Task, subject: Subject, prompts: Sequence[Prompt]
) -> None:
    """The known answers of one family of sentences."""
    logits = _last_logits(subject, prompts).double().cpu()
    if task == "greater_than":
        p = logits.softmax(-1)
        mass = torch.stack(
            [
                p[i, list(prompt.answers)].sum() - p[i, list(prompt.wrong)].sum()
                for i, prompt in enumerate(prompts)
            ]
        )
        figures.add("greater_than_mass_difference", "probability", mass)
        figures.arrays["greater_than_mass_difference"] = mass
        return
    right = torch.stack([logits[i, p.answers[0]] for i, p in enumerate(prompts)])
    wrong = torch.stack([logits[i, list(p.wrong)].max() for i, p in enumerate(prompts)])
    figures.add(f"{task}_accuracy", "share", (right > wrong).double())
    figures.add(f"{task}_logit_difference", "nats", right - wrong)
    figures.arrays[f"{task}_logit_difference"] = right - wrong


def _last_logits(subject: Subject, prompts: Sequence[Prompt]) -> Float[Tensor, "prompts vocab"]:
    """The logits after each prompt. Prompts of one length run together, so nothing is padded."""
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt.clean), []).append(i)
    last: dict[int, Tensor] = {}
    for length, numbers in by_length.items():
        tokens = torch.tensor([prompts[i].clean for i in numbers])
        parts = tokens.split(subject.contexts_per_pass(length))
        rows = torch.cat([_logits(subject, part)[:, -1].clone() for part in parts])
        last.update(zip(numbers, rows, strict=True))
    return torch.stack([last[i] for i in range(len(prompts))])


def _losses(subject: Subject, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch targets"]:
    """The cross-entropy of every token but the first, in nats."""
    logits = _logits(subject, tokens[:, :-1])
    return cross_entropy_rows(logits, tokens[:, 1:].to(logits.device)).double().cpu()


def _logits(subject: Subject, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
    logits = subject.model.run(tokens.to(subject.device)).logits
    assert logits is not None
    return logits
