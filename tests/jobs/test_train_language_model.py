"""The language model job in this process: what it leaves, and that it can be used."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sae_kit import load_model
from sae_kit.data.mixture import MixtureConfig
from sae_kit.data.text import TextConfig
from sae_kit.dist import World
from sae_kit.jobs import train_language_model as job
from sae_kit.jobs.train import train
from sae_kit.jobs.train_language_model import tokenizer_texts
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.snapshots import find_snapshots
from sae_kit.models.tokenizer import Tokenizer
from sae_kit.train.no_ln import RemoveNorms


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(composed, tiny_language_model, tmp_path_factory, cache) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    with (
        pytest.MonkeyPatch.context() as patch,
        composed(folder, *tiny_language_model, name="language_model") as cfg,
    ):
        patch.setenv("SAE_KIT_CACHE", str(cache))
        assert train(cfg).stopped is None
    return folder


def test_what_a_run_leaves(run):
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
        "checkpoints",
        "tokenizer",
        "model",
    }


def test_the_saved_model_has_the_last_held_out_loss(run, tiny_folder, cache, monkeypatch):
    """Computed here from the folder alone, with another formula."""
    monkeypatch.setenv("SAE_KIT_CACHE", str(cache))
    lm = load_model(str(run / "model"))
    data = TextConfig(paths=(str(tiny_folder / "text.txt"),), context_size=16)
    source = data.open(lm.tokenizer, split="heldout", world=World(0, 1), seed=0)
    tokens = torch.stack([next(source) for _ in range(4)])
    log_p = F.log_softmax(lm.model.run(tokens).logits, -1)
    loss = -log_p[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 10
    # bfloat16 autocast in the run, float32 here.
    assert last["heldout/text"] == pytest.approx(float(loss), abs=0.02)


def test_snapshots_are_the_model_at_their_steps(
    composed, tiny_language_model, tmp_path, cache, run
):
    """They change nothing: the last one is the model that a run without them leaves."""
    with (
        pytest.MonkeyPatch.context() as patch,
        composed(
            tmp_path, *tiny_language_model, "lm.snapshots=[0,4,10]", name="language_model"
        ) as cfg,
    ):
        patch.setenv("SAE_KIT_CACHE", str(cache))
        assert train(cfg).stopped is None
    found = find_snapshots(tmp_path)
    per_step = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["tokens"] // 10
    assert [(moment.step, moment.n_tokens) for moment in found.values()] == [
        (step, step * per_step) for step in (0, 4, 10)
    ]
    first, between, last = (load_model(str(folder)).model for folder in found)
    initial = GPT2(first.config, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.W_E, initial.W_E)
    assert not torch.equal(between.W_E, last.W_E)
    assert torch.equal(last.W_E, load_model(str(run / "model")).model.W_E)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lm.snapshots=[11]"], r"lm\.snapshots: 11 comes after the last step, 10"),
        (["lm.snapshots=[-1]"], r"lm\.snapshots: \[-1\] has a negative step"),
        (["lm.snapshots=[1]", "removal=demo"], r"lm\.snapshots: .* norms are removed"),
    ],
)
def test_snapshots_that_cannot_be_are_refused(
    composed, tiny_language_model, tmp_path, overrides, message
):
    arguments = [*tiny_language_model, *overrides]
    with (
        composed(tmp_path / "run", *arguments, name="language_model") as cfg,
        pytest.raises(ValueError, match=message),
    ):
        train(cfg)
    assert not (tmp_path / "run").exists()


def test_the_tokenizer_is_the_runs_own(run):
    kept, shipped = Tokenizer.load(run / "tokenizer"), Tokenizer.load(run / "model")
    assert kept.fingerprint == shipped.fingerprint
    assert kept.vocab_size == 300
    assert load_model(str(run / "model")).model.config.n_vocab == 300


def test_a_resumed_run_trains_no_new_tokenizer(run, composed, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "train_bpe", lambda *_: pytest.fail("trained another tokenizer"))
    before = (run / "model" / "model.safetensors").read_bytes()
    with composed(tmp_path / "other", f"resume={run}") as cfg:
        assert train(cfg).stopped is None
    assert (run / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_synthetic_text_alone_is_trained_on_and_held_out(composed, tiny_language_model, tmp_path):
    """As in the demo model's third leg: its tokenizer has the names. The loss is computed anew."""
    kept = [a for a in tiny_language_model if not a.startswith("architecture.")]
    alone = ["data.text_share=0", "data.synthetic_share=1", "data.text_paths=[]"]
    cheap = ["lm.n_tokens=128", "lm.matrices=adamw", "lm.bf16=false"]
    arguments = [*kept, *alone, *cheap, "start_from=demo"]
    with composed(tmp_path, *arguments, name="language_model") as cfg:
        assert train(cfg).stopped is None
    lm = load_model(str(tmp_path / "model"))
    data = MixtureConfig(
        docs_share=0.0, text_share=0.0, synthetic_share=1.0, text_paths=(), context_size=16
    )
    source = data.open(lm.tokenizer, split="heldout", world=World(0, 1), seed=0)
    tokens = torch.stack([next(source) for _ in range(4)])
    log_p = F.log_softmax(lm.model.run(tokens).logits, -1)
    loss = -log_p[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {key for key in last if key.startswith("heldout/")} == {"heldout/synthetic"}
    assert last["heldout/synthetic"] == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.0, 1.0, 0.0), {"text"}),
        ((0.5, 0.0, 0.5), {"docs", "synthetic"}),
        ((0.4, 0.3, 0.3), {"docs", "text", "synthetic"}),
    ],
)
def test_the_tokenizer_reads_what_has_a_share(monkeypatch, tmp_path, shares, expected):
    class Corpus:
        train = ("docs",)

    monkeypatch.setattr(job, "docstring_corpus", Corpus)
    monkeypatch.setattr(job, "synthetic_text", lambda seed, n: ["synthetic"])
    (tmp_path / "a.txt").write_text("text\n" * 100 + "held out")
    docs, text, synthetic = shares
    config = MixtureConfig(
        docs_share=docs,
        text_share=text,
        synthetic_share=synthetic,
        text_paths=(str(tmp_path / "a.txt"),),
    )
    texts = list(tokenizer_texts(config))
    assert {text.split()[0] for text in texts} == expected
    assert not any("held out" in text for text in texts)


def test_a_model_smaller_than_its_contexts_is_refused(composed, tiny_language_model, tmp_path):
    with (
        composed(
            tmp_path / "run", *tiny_language_model, "data.context_size=17", name="language_model"
        ) as cfg,
        pytest.raises(ValueError, match=r"context_size=17 .* data\.context_size=16"),
    ):
        train(cfg)
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused(
    composed, tiny_language_model, tmp_path
):
    with (
        composed(
            tmp_path / "run",
            *tiny_language_model,
            "architecture.n_vocab=256",
            name="language_model",
        ) as cfg,
        pytest.raises(ValueError, match=r"architecture\.n_vocab: 256 .* 257"),
    ):
        train(cfg)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", ["", "model"], ids=["a run", "a model folder"])
def test_going_on_from_a_run_starts_at_its_weights(
    given, run, composed, tiny_language_model, tmp_path
):
    """With a learning rate too small to move float32 weights, they stay what they were."""
    still = ["lm.lr_matrix=1e-12", "lm.lr_other=1e-12", "lm.weight_decay=0"]
    arguments = [*tiny_language_model, *still, f"start_from={run / given}"]
    with composed(tmp_path, *arguments, name="language_model") as cfg:
        assert train(cfg).stopped is None
    before, after = (load_model(str(folder / "model")) for folder in (run, tmp_path))
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
    torch.testing.assert_close(after.model.state_dict(), before.model.state_dict())


def test_going_on_with_another_architecture_is_refused(
    run, composed, tiny_language_model, tmp_path
):
    arguments = [*tiny_language_model, "architecture.d_mlp=24", f"start_from={run}"]
    with (
        composed(tmp_path / "new", *arguments, name="language_model") as cfg,
        pytest.raises(ValueError, match=r"architecture: .*d_mlp=24.* does not fit"),
    ):
        train(cfg)
    assert not (tmp_path / "new" / "config.yaml").exists()


@pytest.mark.parametrize("recovers", [True, False])
def test_a_run_that_removes_layernorm_leaves_a_model_without(
    recovers, composed, tiny_language_model, tmp_path, cache, run, monkeypatch
):
    """Also where the loss never comes down, and one removal alone would outwait the run."""
    monkeypatch.setenv("SAE_KIT_CACHE", str(cache))
    monkeypatch.setattr(RemoveNorms, "_bound", lambda _: math.inf if recovers else -math.inf)
    kinds = ("ln2", "ln1.qk", "ln1.v", "ln_final", "eot", "first")
    groups = ",".join(f"{{what: {what}, start: {i}, gap: 1}}" for i, what in enumerate(kinds, 1))
    removal = ["removal=demo", f"removal.groups=[{groups}]", "removal.patience=100"]
    overrides = [*tiny_language_model, *removal, f"start_from={run / 'model'}"]
    with composed(tmp_path / "run", *overrides, name="language_model") as cfg:
        assert train(cfg).stopped is None
    lm = load_model(str(tmp_path / "run" / "model"))
    assert lm.model.config.norm == "linear"
    with (tmp_path / "run" / "removals" / "table.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    # One block, ten steps: three could be waited for.
    assert steps == [start if recovers else start + 3 for start in range(1, 7)]
    assert (tmp_path / "run" / "removals" / "loss.png").is_file()
