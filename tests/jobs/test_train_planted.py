"""A planted run: trained, saved, measured, continued; and its SAE evaluated again."""

import shutil
from pathlib import Path

import pytest
import torch

from sae_kit import load_sae
from sae_kit.jobs.evaluate import evaluate
from sae_kit.jobs.train import train
from sae_kit.result import Result

SETTINGS = [
    "device=cpu",
    "planted.d_in=32",
    "planted.n_features=24",
    "planted.mean_active=2.0",
    "planted.hierarchy=0.0",
    "planted.zipf_exponent=0.0",
    "sae.k=2",
    "trainer.n_tokens=51200",
    "trainer.lr=0.01",
    "trainer.batch_rows=256",
    "trainer.checkpoint_every=50",
    "trainer.n_checkpoints=9",
]


def run_eval(composed, folder: Path, *overrides: str) -> Result:
    with composed(folder, *overrides, name="eval") as cfg:
        return evaluate(cfg, folder)


@pytest.fixture(scope="module")
def run(composed, tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("planted")
    with composed(folder, *SETTINGS, name="planted") as cfg:
        outcome = train(cfg)
    assert outcome.stopped is None
    row = Result.load(folder / "evaluation").rows[0]
    assert outcome.score == pytest.approx(1 - row["mcc"])
    return folder


@pytest.mark.slow
def test_training_finds_the_features(run):
    """An untrained SAE of this size has an mcc of about 0.5."""
    (row,) = Result.load(run / "evaluation").rows
    assert row["site"] == "planted"
    assert row["mcc"] > 0.8
    assert row["f1_micro"] > 0.4


def test_what_is_saved_says_what_was_planted(run):
    sae = load_sae(run / "saes" / "planted")
    assert (sae.d_in, sae.d_sae) == (32, 24)
    assert sae.metadata["training"]["planted"]["n_features"] == 24


@pytest.mark.slow
def test_a_continued_run_ends_in_the_same_weights(run, composed, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    for folder in ("saes", "evaluation"):
        shutil.rmtree(other / folder)
    _, *later = sorted((other / "checkpoints").iterdir())
    assert later
    for path in later:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with composed(tmp_path / "unused", f"resume={other}") as cfg:
        assert train(cfg).stopped is None
    a, b = (load_sae(folder / "saes" / "planted").weights() for folder in (run, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert Result.load(run / "evaluation").rows == Result.load(other / "evaluation").rows


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["run={run}", "saes={run}/saes"])
def test_evaluating_it_again_needs_no_model(run, composed, tmp_path, subject):
    result = run_eval(composed, tmp_path, "eval=recovery", subject.format(run=run))
    assert result.rows == Result.load(run / "evaluation").rows
    assert {path.name for path in tmp_path.glob("*.png")} == {"directions.png", "firing.png"}


def test_evaluations_of_the_other_kind_are_refused(run, composed, tmp_path):
    with pytest.raises(ValueError, match="trained no SAEs of a language model"):
        run_eval(composed, tmp_path, "eval=core", f"run={run}")
    with pytest.raises(ValueError, match="run: none given; give run or saes"):
        run_eval(composed, tmp_path, "eval=recovery")


@pytest.mark.slow
def test_saes_of_a_language_model_are_refused(composed, tiny_saes, tmp_path):
    with composed(tmp_path / "run", *tiny_saes) as cfg:
        train(cfg)
    with pytest.raises(ValueError, match="were not trained on planted rows"):
        run_eval(composed, tmp_path, "eval=recovery", f"run={tmp_path / 'run'}")
