"""Every conf/experiment, for one step, with its model and text swapped for tiny ones."""

from pathlib import Path

import pytest
from conftest import random_gpt2
from runner import ROOT

from sae_kit.formats.base import load_saes
from sae_kit.models.gpt2 import GPT2Config
from sae_kit.models.pretrained import load_tokenizer, save_model

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory) -> Path:
    """As many blocks as GPT-2 small, so that its sites are there; the rest is small."""
    tokenizer = load_tokenizer(str(tiny.model))
    sizes = {"n_layer": 12, "n_head": 2, "d_model": 16, "d_mlp": 16, "n_ctx": 32}
    config = GPT2Config(**sizes, n_vocab=tokenizer.vocab_size)
    folder = tmp_path_factory.mktemp("twelve")
    save_model(random_gpt2(config), tokenizer, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_runs_one_step(tiny, model, tmp_path, experiment):
    folder = tmp_path / "run"
    run = tiny.run(
        f"experiment={experiment}",
        "model=local",
        f"model.name={model}",
        "data=text",
        f"data.paths=[{tiny.text}]",
        "data.context_size=32",
        "activations.buffer_rows=64",
        "sae.d_sae=64",
        "trainer.n_tokens=32",
        "trainer.batch_rows=32",
        f"hydra.run.dir={folder}",
    )
    assert run.status == 0, run.err
    assert (folder / "metrics.jsonl").read_text().count("\n") == 1
    assert load_saes(folder)


def test_there_are_experiments():
    assert EXPERIMENTS
