"""Other models to hold a subject's against: untrained, shuffled, in training, or any other.

A word names them:

- random            the subject's shape, with initial weights
- shuffled          the subject's weights, each tensor's values in random order: what is left is
                    what sizes and scales alone bring
- a run's folder    of `python train.py --config-name=language_model lm.snapshots=[0,10,100]`: the
                    model at each of these steps
- anything else     a model by name: a folder, a hub id, "demo"

All read the same tokens, so their vocabularies must be the subject's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import torch

from sae_kit.evals.base import Subject
from sae_kit.evals.shared.draws import generator_of
from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.hf_layout import read_config
from sae_kit.models.pretrained import find_model, load_model, load_tokenizer
from sae_kit.models.snapshots import find_snapshots
from sae_kit.models.tokenizer import Tokenizer

RANDOM, SHUFFLED = "random", "shuffled"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """One of the models, loaded when it is asked for."""

    label: str
    config: GPT2Config
    load: Callable[[], GPT2]
    """Makes it, on the subject's device and of its type of numbers."""
    run: str = ""
    """The training run that it is a snapshot of."""
    step: int = -1
    """Of this run; -1 where it is none."""
    n_tokens: int = -1
    """Tokens that this run had trained on; -1 where it is not known."""

    @staticmethod
    def own(subject: Subject) -> "Variant":
        """The subject's model itself."""
        model, name = subject.model, subject.language_model.name
        return Variant(label=name, config=model.config, load=lambda: model)


def variants(subject: Subject, words: Sequence[str]) -> list[Variant]:
    """The models that the words name; none is loaded yet.

    Raises:
        ValueError: no such model, one of another vocabulary, or two of one name.
    """
    found = [variant for word in words for variant in _named(subject, word)]
    labels = [subject.language_model.name, *(variant.label for variant in found)]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"models: {label} comes twice, the subject's model counted; once each")
    return found


def _named(subject: Subject, word: str) -> Iterator[Variant]:
    own = subject.model.config
    if word == RANDOM:
        yield Variant(label=word, config=own, load=partial(_random, subject))
    elif word == SHUFFLED:
        yield Variant(label=word, config=own, load=partial(_shuffled, subject))
    elif moments := find_snapshots(Path(word)):
        run = Path(word).name
        for folder, moment in moments.items():
            found = _on_disk(subject, str(folder), f"{run}, step {moment.step:,}")
            yield replace(found, run=run, step=moment.step, n_tokens=moment.n_tokens)
    else:
        yield _on_disk(subject, word, word)


def _on_disk(subject: Subject, name: str, label: str) -> Variant:
    try:
        config = read_config(find_model(name)[0])
    except ValueError as error:
        raise ValueError(f"models: {error}") from error
    _check_vocabulary(load_tokenizer(name), subject, label)
    return Variant(label=label, config=config, load=partial(_load, subject, name))


def _check_vocabulary(tokenizer: Tokenizer, subject: Subject, label: str) -> None:
    own = subject.language_model.tokenizer
    if tokenizer.fingerprint == own.fingerprint:
        return
    ids = range(own.vocab_size)
    if tokenizer.vocab_size != own.vocab_size or tokenizer.str_tokens(ids) != own.str_tokens(ids):
        raise ValueError(
            f"models: {label} has another vocabulary than {subject.language_model.name} and cannot "
            "read its prompts; give models that share a tokenizer"
        )


def _random(subject: Subject) -> GPT2:
    generator = generator_of(subject.seed, RANDOM, 0)
    return _ready(GPT2(subject.model.config, generator=generator), subject)


@torch.no_grad()
def _shuffled(subject: Subject) -> GPT2:
    model = GPT2(subject.model.config)
    model.load_state_dict(subject.model.state_dict())
    for name, p in model.named_parameters():
        order = torch.randperm(p.numel(), generator=generator_of(subject.seed, name, 0))
        p.copy_(p.flatten()[order].view(p.shape))
    return _ready(model, subject)


def _load(subject: Subject, name: str) -> GPT2:
    return load_model(
        name,
        centre_writing_weights=subject.language_model.centred,
        dtype=str(subject.model.W_E.dtype).removeprefix("torch."),
        device=str(subject.device),
    ).model


def _ready(model: GPT2, subject: Subject) -> GPT2:
    own = subject.model
    return model.to(own.device, own.W_E.dtype).eval().requires_grad_(False)
