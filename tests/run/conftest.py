"""Whole runs of train.py on something tiny."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import random_gpt2
from runner import Run, Runner

from sae_kit.data.synthetic import synthetic_text
from sae_kit.models.gpt2 import GPT2Config
from sae_kit.models.pretrained import save_model
from sae_kit.models.tokenizer import train_bpe


@dataclass(frozen=True)
class Tiny:
    """train.py on a tiny random model and some thousand words, in 20 steps."""

    runner: Runner
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def text(self) -> Path:
        return self.folder / "text.txt"

    def saes(self, **changed: object) -> list[str]:
        """Arguments of an SAE run; `changed` with "__" for "."."""
        settings = {
            "model": "local",
            "model.name": self.model,
            "data": "text",
            "data.paths": f"[{self.text}]",
            "data.context_size": 32,
            "activations.buffer_rows": 512,
            "activations.contexts_per_pass": 4,
            "sae.d_sae": 64,
            "sae.k": 4,
            "trainer.n_tokens": 1280,
            "trainer.lr": 0.001,
            "trainer.batch_rows": 64,
            "trainer.dead_after_tokens": 128,
            "trainer.checkpoint_every": 3,
            "trainer.log_every": 2,
        }
        return _arguments(settings, changed)

    def language_model(self, **changed: object) -> list[str]:
        """Arguments of a language model run."""
        settings = {
            "data.docs_share": 0,
            "data.text_share": 1,
            "data.synthetic_share": 0,
            "data.text_paths": f"[{self.text}]",
            "data.context_size": 16,
            "architecture.n_layer": 1,
            "architecture.n_head": 2,
            "architecture.d_model": 16,
            "architecture.d_mlp": 32,
            "architecture.n_ctx": 16,
            "architecture.n_vocab": 300,
            "lm.n_tokens": 20 * 4 * 16,
            "lm.batch_contexts": 4,
            "lm.n_eval_contexts": 4,
            "lm.eval_every": 4,
            "lm.log_every": 2,
            "lm.checkpoint_every": 3,
        }
        return ["--config-name=language_model", *_arguments(settings, changed)]

    def run(self, *arguments: str, **options: object) -> Run:
        return self.runner.run(*arguments, **options)

    def start(self, *arguments: str, **options: object) -> Run:
        return self.runner.start(*arguments, **options)


def _arguments(settings: dict[str, object], changed: dict[str, object]) -> list[str]:
    settings = {**settings, **{key.replace("__", "."): value for key, value in changed.items()}}
    return [f"{key}={value}" for key, value in settings.items() if value is not None]


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("runs"))
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def tiny(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    texts = synthetic_text(0, 600)
    (folder / "text.txt").write_text("\n".join(texts), encoding="utf-8")
    tokenizer = train_bpe(texts, 300)
    sizes = {"n_layer": 2, "n_head": 2, "d_model": 32, "d_mlp": 48, "n_ctx": 32}
    config = GPT2Config(**sizes, n_vocab=tokenizer.vocab_size)
    save_model(random_gpt2(config), tokenizer, folder / "model")
    return Tiny(runner, folder)
