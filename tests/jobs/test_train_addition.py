"""A run that trains a network to add: continued, and read again."""

import shutil
from pathlib import Path

import pytest
import torch

from sae_kit.jobs.evaluate import evaluate
from sae_kit.jobs.train import train
from sae_kit.jobs.train_addition import trained_addition

SETTINGS = [
    "addition.model={prime: 7, d_model: 16, n_head: 2, d_mlp: 32}",
    "addition.train_fraction=0.6",
    "addition.log_every=10",
]


@pytest.fixture(scope="module")
def run(composed, tmp_path_factory) -> Path:
    """A finished run of 60 steps."""
    folder = tmp_path_factory.mktemp("addition")
    with composed(folder, *SETTINGS, "addition.n_steps=60", name="addition") as cfg:
        assert train(cfg).stopped is None
    return folder


def test_an_interrupted_run_goes_on_bit_for_bit(run, composed, tmp_path):
    short, cut = tmp_path / "short", tmp_path / "cut"
    with composed(short, *SETTINGS, "addition.n_steps=20", name="addition") as cfg:
        train(cfg)
    shutil.copytree(run, cut)
    shutil.rmtree(cut / "checkpoints")
    shutil.copytree(short / "checkpoints", cut / "checkpoints")
    assert trained_addition(cut)[1] == 20
    with composed(tmp_path / "unused", f"resume={cut}", name="addition") as cfg:
        train(cfg)
    (whole, n_whole), (resumed, n_resumed) = trained_addition(run), trained_addition(cut)
    assert n_whole == n_resumed == 60
    expected = whole.model.state_dict()
    assert all(torch.equal(expected[k], v) for k, v in resumed.model.state_dict().items())


def test_a_run_of_another_task_is_refused(run, tmp_path):
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (tmp_path / "config.yaml").write_text(text.replace("task: addition", "task: planted"))
    with pytest.raises(ValueError, match="a run of task planted"):
        trained_addition(tmp_path)


def test_evaluations_of_a_language_model_refuse_it(run, composed, tmp_path):
    with (
        composed(tmp_path, "eval=core", f"run={run}", name="eval") as cfg,
        pytest.raises(ValueError, match="trained no SAEs of a language model"),
    ):
        evaluate(cfg, tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("addition.model.prime=24", "24 is no odd prime"),
        ("addition.model.n_head=3", "not divisible by n_head"),
        ("addition.model.n_head=0", r"addition\.model\.n_head: 0 is not positive"),
        ("addition.train_fraction=1.5", "train_fraction"),
        ("addition.lr=-1", r"addition\.lr: -1.0 is not positive"),
        ("addition.seed=-1", r"addition\.seed: -1 is negative"),
    ],
)
def test_bad_settings_leave_no_folder(composed, tmp_path, override, message):
    with (
        composed(tmp_path / "run", override, name="addition") as cfg,
        pytest.raises(ValueError, match=message),
    ):
        train(cfg)
    assert not (tmp_path / "run").exists()
