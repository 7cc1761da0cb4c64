"""Other models to hold a subject's against: untrained, shuffled, in training, or any other.

A word names them:

- random            the subject's shape, with initial weights
- shuffled          the subject's weights, each tensor's values in random order: what is left is
                    what sizes and scales alone bring
- a run's folder    of `python train.py --config-name=language_model`: one model for each of its
                    snapshots (lm.snapshots), or if it kept none, of its checkpoints
                    (lm.n_checkpoints says how many are kept)
- anything else     a model by name: a folder, a hub id, "demo"

All read the same tokens, so they need the subject's vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from sae_kit.checkpoint import checkpoints, load_checkpoint
from sae_kit.evals.base import Subject
from sae_kit.evals.draws import generator_of
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.pretrained import load_model
from sae_kit.models.snapshots import find_snapshots

RANDOM, SHUFFLED = "random", "shuffled"
CHECKPOINTS = "checkpoints"


@final
@dataclass(frozen=True, eq=False)
class Variant:
    """One of the models."""

    label: str
    model: GPT2
    step: int | None = None
    """Of its training, for a checkpoint."""


def variants(subject: Subject, words: Sequence[str]) -> Iterator[Variant]:
    """The models that the words name, made one after another.

    Raises:
        ValueError: no such model, a run without checkpoints, or a model of another vocabulary.
    """
    for word in words:
        run = Path(word)
        if word == RANDOM:
            generator = generator_of(subject.seed, word, 0)
            yield _checked(Variant(word, GPT2(subject.model.config, generator=generator)), subject)
        elif word == SHUFFLED:
            yield _checked(Variant(word, shuffled(subject.model, subject.seed)), subject)
        elif snapshots := find_snapshots(run):
            for folder, moment in snapshots.items():
                yield _checked(
                    Variant(f"step {moment.step:,}", load_model(str(folder)).model, moment.step),
                    subject,
                )
        elif (run / CHECKPOINTS).is_dir():
            yield from _checkpoints(run, subject)
        else:
            yield _checked(Variant(word, load_model(word).model), subject)


@torch.no_grad()
def shuffled(model: GPT2, seed: int) -> GPT2:
    """A model with the values of every tensor in another order."""
    other = GPT2(model.config)
    other.load_state_dict(model.state_dict())
    for name, p in other.named_parameters():
        order = torch.randperm(p.numel(), generator=generator_of(seed, name, 0))
        p.copy_(p.flatten()[order.to(p.device)].view(p.shape))
    return other


def _checkpoints(run: Path, subject: Subject) -> Iterator[Variant]:
    """The states of a language model in training, the first one first."""
    found = sorted(checkpoints(run / CHECKPOINTS), key=_step)
    if not found:
        raise ValueError(f"models: {run} has no checkpoint yet")
    for path in found:
        model = GPT2(subject.model.config)
        state = load_checkpoint(path)["task"].get("model")
        sizes = {key: tuple(p.shape) for key, p in model.state_dict().items()}
        if state is None or {key: tuple(p.shape) for key, p in state.items()} != sizes:
            raise ValueError(
                f"models: {path} is no checkpoint of a language model of the subject's shape"
            )
        model.load_state_dict(state)
        yield _checked(Variant(f"step {_step(path):,}", model, _step(path)), subject)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _checked(variant: Variant, subject: Subject) -> Variant:
    model, own = variant.model, subject.model
    if model.config.n_vocab != own.config.n_vocab:
        raise ValueError(
            f"models: {variant.label} has {model.config.n_vocab} tokens, but "
            f"{subject.language_model.name} {own.config.n_vocab}; they cannot read the same prompts"
        )
    model.to(own.device, own.W_E.dtype).eval().requires_grad_(False)
    return variant
