"""Train a GPT-2-architecture language model from text, tokenizer first; made for the demo model."""

import contextlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from sae_kit.checkpoint import latest_checkpoint
from sae_kit.config import from_node
from sae_kit.data.docs import docstring_corpus
from sae_kit.data.mixture import MixtureConfig
from sae_kit.data.synthetic import synthetic_text
from sae_kit.data.text import find_files, read_part, select_parts
from sae_kit.data.tokens import check_context
from sae_kit.dist import world
from sae_kit.jobs.run_folder import Outcome, check_alone, record_start
from sae_kit.log import LoggerConfig
from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.hooks import torch_device
from sae_kit.models.pretrained import load_model, save_model
from sae_kit.models.snapshots import Moment, save_snapshot
from sae_kit.models.tokenizer import N_BYTE_TOKENS, Tokenizer, train_bpe
from sae_kit.result import Result
from sae_kit.train.language_model import LanguageModelConfig, LanguageModelTask
from sae_kit.train.loop import CHECKPOINTS, Loop, LoopPlan
from sae_kit.train.no_ln import RemovalConfig, RemoveNorms
from sae_kit.train.snapshots import WithSnapshots

log = logging.getLogger(__name__)

REMOVALS = "removals"
"""Name of the folder in a run folder with what was removed when, and what it did to the loss."""

TOKENIZER = "tokenizer"
"""Name of the folder in a run folder that keeps the tokenizer the run was started with."""

N_SYNTHETIC_TEXTS = 200_000
"""Texts from which the tokenizer learns the words of the prompt families: some 2,000 times each, so
that they outweigh the rarest merges of the corpus."""


@final
@dataclass(frozen=True, kw_only=True)
class TrainLanguageModel:
    """The whole config of a run: conf/language_model.yaml."""

    task: str
    architecture: GPT2Config
    data: MixtureConfig
    lm: LanguageModelConfig
    logger: LoggerConfig
    removal: RemovalConfig | None = None
    """When the model's LayerNorms are removed; None: they are kept."""
    start_from: str | None = None
    """Whose weights and tokenizer to go on from: a model (folder or hub id), or the folder of
    another run, which stands for its newest checkpoint; None: from scratch.
    """
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.lm.snapshots and self.removal is not None:
            raise ValueError(
                "lm.snapshots: a model some of whose norms are removed is in no format; leave them "
                "out where norms are removed"
            )


def train_language_model(values: dict[str, Any], folder: Path, *, resume: bool) -> Outcome:
    """Train as the config `values` says, in the run folder.

    The model lands in `model/`, in Hugging Face layout, and its snapshots in `snapshots/`.

    Raises:
        ValueError: the config does not fit together; nothing has been written then.
    """
    config = from_node(TrainLanguageModel, values)
    check_alone(config.task)
    check_context(config.data.context_size, config.architecture.n_ctx)
    if config.architecture.n_vocab < N_BYTE_TOKENS:
        raise ValueError(
            f"architecture.n_vocab: {config.architecture.n_vocab} is too small for a byte-level "
            f"tokenizer; give at least {N_BYTE_TOKENS}"
        )
    model, tokenizer = _start(config, folder / TOKENIZER if resume else None)
    task = _task(config, model, tokenizer)
    watched = _with_snapshots(task, config.lm.snapshots, tokenizer, folder)
    if not resume:
        tokenizer.save(folder / TOKENIZER)
    record_start(folder, values)
    plan = LoopPlan(
        n_steps=task.n_steps,
        log_every=config.lm.log_every,
        checkpoint_every=config.lm.checkpoint_every,
        n_checkpoints=config.lm.n_checkpoints,
        shown=("loss",),
        remedy="lower lm.lr_matrix and lm.lr_other, or raise lm.n_warmup_steps",
    )
    with contextlib.closing(config.logger.build(folder, values)) as logger:
        loop = Loop(watched, plan, folder=folder, loggers=[logger])
        if resume:
            loop.resume()
        stopped = loop.run()
    if stopped is None:
        save_model(task.norms.finished(task.model), tokenizer, folder / "model")
        if isinstance(task.norms, RemoveNorms):
            _draw_removals(folder, task.norms)
        log.info("model: %s", folder / "model")
        log.info(
            "measure:   python eval.py eval=language_model model=local model.name=%s",
            folder / "model",
        )
    return Outcome(stopped)


def _start(config: TrainLanguageModel, kept: Path | None) -> tuple[GPT2, Tokenizer]:
    """The model before its first step, and its tokenizer.

    `kept` is where an earlier start of the same run left the tokenizer; None: this is the first.
    """
    if config.start_from is not None:
        return _given(config.start_from, config.architecture, torch_device(config.device))
    if kept is not None:
        tokenizer = Tokenizer.load(kept)
    else:
        log.info("training a tokenizer of %d tokens", config.architecture.n_vocab)
        tokenizer = train_bpe(tokenizer_texts(config.data), config.architecture.n_vocab)
    architecture = replace(config.architecture, n_vocab=tokenizer.vocab_size)
    model = GPT2(architecture, generator=torch.Generator().manual_seed(config.lm.seed))
    return model.to(torch_device(config.device)), tokenizer


def _given(name: str, architecture: GPT2Config, device: torch.device) -> tuple[GPT2, Tokenizer]:
    """The model and tokenizer called `name`, ready to be trained on."""
    run = Path(name)
    if (run / CHECKPOINTS).is_dir():
        model, tokenizer = GPT2(architecture), Tokenizer.load(run / TOKENIZER)
        weights = latest_checkpoint(run / CHECKPOINTS)[1]["task"]["model"]
        sizes = {key: tuple(weight.shape) for key, weight in weights.items()}
        if sizes != {key: tuple(weight.shape) for key, weight in model.state_dict().items()}:
            raise ValueError(
                f"architecture: {architecture} does not fit the weights in {run}; give the "
                "architecture of that run"
            )
        model.load_state_dict(weights)
        return model.to(device), tokenizer
    given = load_model(name, device=str(device))
    if given.model.config != architecture:
        raise ValueError(
            f"architecture: the config says {architecture}, but start_from={name} has "
            f"{given.model.config}; make them equal"
        )
    return given.model.train().requires_grad_(True), given.tokenizer


def _task(config: TrainLanguageModel, model: GPT2, tokenizer: Tokenizer) -> LanguageModelTask:
    seed, here = config.lm.seed, world()
    source = config.data.open(tokenizer, split="train", world=here, seed=seed)
    heldout = {
        name: part.open(tokenizer, split="heldout", world=here, seed=seed)
        for name, part in config.data.parts().items()
    }
    if not heldout:  # no real text has a share
        heldout = {"synthetic": config.data.open(tokenizer, split="heldout", world=here, seed=seed)}
    if (removal := config.removal) is None:
        return LanguageModelTask(config.lm, model, source, heldout)

    def norms(model: GPT2, contexts: Tensor, n_steps: int) -> RemoveNorms:
        return RemoveNorms(removal, model, contexts, eot_id=tokenizer.eot_id, n_steps=n_steps)

    return LanguageModelTask(config.lm, model, source, heldout, norms)


def _with_snapshots(
    task: LanguageModelTask, steps: Sequence[int], tokenizer: Tokenizer, folder: Path
) -> WithSnapshots:
    """The task, whose model is kept after these steps."""
    if (last := max(steps, default=0)) > task.n_steps:
        raise ValueError(
            f"lm.snapshots: {last} comes after the last step, {task.n_steps}; leave it out, or "
            "train on more tokens"
        )

    def save(step: int) -> None:
        moment = Moment(step=step, n_tokens=step * task.n_tokens_per_step)
        save_snapshot(task.model, tokenizer, folder, moment)

    return WithSnapshots(task, steps, save)


def _draw_removals(folder: Path, norms: RemoveNorms) -> None:
    """The event log as a table, and the loss with the events marked."""
    from sae_kit.viz.removal import losses

    Result("removal", rows=[asdict(removed) for removed in norms.done]).save(folder / REMOVALS)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    marks = [(removed.step, removed.name) for removed in norms.done]
    figure = losses([json.loads(line) for line in lines], marks)
    figure.savefig(folder / REMOVALS / "loss.png", dpi=200)
    log.info("removals:  %s", folder / REMOVALS)


def tokenizer_texts(data: MixtureConfig) -> Iterator[str]:
    """What the tokenizer is trained on: the training part of the mixture, whatever its shares."""
    texts: list[Iterator[str]] = []
    if data.synthetic_share > 0:
        texts.append(iter(synthetic_text(0, N_SYNTHETIC_TEXTS)))
    if data.docs_share > 0:
        texts.append(iter(docstring_corpus().train))
    if data.text_share > 0:
        parts = select_parts(find_files(data.text_paths), data.text_heldout, "train")
        texts.extend(read_part(path, part) for path, part in parts)
    return itertools.chain.from_iterable(texts)
