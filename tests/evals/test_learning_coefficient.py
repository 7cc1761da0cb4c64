"""The evaluation: verdicts on chains whose end is known."""

import dataclasses

import pytest
import torch

from sae_kit.evals.learning_coefficient import LearningCoefficient
from sae_kit.evals.loss_landscape.verdicts import DIVERGED, NO_MINIMUM
from sae_kit.models.pretrained import load_model
from sae_kit.models.snapshots import Moment, save_snapshot

SMALL = LearningCoefficient(
    n_tokens=512, steps=(1e-30, 1e-6), n_chains=2, n_burn_in=2, n_draws=6, loss="behaviour"
)


@pytest.fixture(scope="module")
def result(subject):
    return SMALL.run(dataclasses.replace(subject, saes={}))


def test_a_step_of_no_size_finds_nothing(result):
    row = result.rows[0]
    assert row["step"] == 1e-30
    assert row["coefficient"] == pytest.approx(0.0, abs=1e-3)
    assert result.arrays["trace/toy/1e-30"].abs().max() < 1e-5


def test_traces_hold_every_step_and_begin_at_the_minimum(result):
    trace = result.arrays["trace/toy/1e-06"]
    assert trace.shape == (2, 8)
    assert trace[:, 0].abs().max() < 1e-5
    row = result.rows[1]
    expected = result.scalars["n_beta"] * trace[:, 2:].double().mean()
    assert row["coefficient"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)
    assert row["coefficient_low"] < row["coefficient"] < row["coefficient_high"]
    assert row["coefficient"] > 0


def test_the_convention_of_n_beta_is_said_and_may_be_chosen(result, subject):
    n = result.scalars["n_data"]
    assert n == 512 / 64 * 63
    assert result.scalars["n_beta"] == pytest.approx(n / torch.tensor(float(n)).log().item())
    chosen = dataclasses.replace(SMALL, n_beta=7.0, steps=(1e-6,)).run(subject)
    assert chosen.scalars["n_beta"] == 7.0
    assert chosen.scalars["cut_off"] == pytest.approx(SMALL.gamma / 7.0)


def test_a_step_that_diverges_is_told_from_others_and_alone_is_refused(subject):
    settings = dataclasses.replace(SMALL, steps=(1e-6, 1e6))
    rows = settings.run(subject).rows
    assert [row["verdict"] == DIVERGED for row in rows] == [False, True]
    assert rows[1]["n_steps"] < 8
    assert "coefficient" not in rows[1]
    with pytest.raises(ValueError, match=r"diverged at every one of \[1000000.0\]; give smaller"):
        dataclasses.replace(SMALL, steps=(1e6,)).run(subject)


def test_a_model_that_is_no_minimum_is_said_to_be_none(subject, caplog):
    """A random model: noise and the gradient of cross-entropy take it down."""
    settings = LearningCoefficient(
        n_tokens=512, steps=(1e-5,), n_chains=2, n_burn_in=0, n_draws=16, n_beta=1e4, gamma=0.0
    )
    (row,) = settings.run(subject).rows
    assert row["verdict"] == NO_MINIMUM
    assert row["coefficient_high"] < 0
    assert "toy is no minimum of this loss" in caplog.text


@pytest.mark.slow
def test_a_run_stands_for_its_snapshots(subject, tmp_path):
    tokenizer = subject.language_model.tokenizer
    for step in (0, 8):
        save_snapshot(subject.model, tokenizer, tmp_path, Moment(step=step, n_tokens=64 * step))
    assert load_model(str(tmp_path / "snapshots" / "step_8")).model.config == subject.model.config
    settings = dataclasses.replace(SMALL, models=(str(tmp_path),), steps=(1e-6,))
    result = settings.run(subject)
    rows = [(row["model"], row["train_step"]) for row in result.rows]
    run = tmp_path.name
    assert rows == [("toy", -1), (f"{run}, step 0", 0), (f"{run}, step 8", 8)]
    # The same weights, the same draws.
    own, first, second = (row["coefficient"] for row in result.rows)
    assert own == pytest.approx(first) == pytest.approx(second)
    assert {"traces", "steps", "training"} == set(type(settings).plot(result))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": ()}, "steps: "),
        ({"steps": (1e-5, 1e-6)}, "steps: "),
        ({"steps": (0.0,)}, "step: 0.0 is not positive"),
        ({"n_chains": 1}, "n_chains: 1"),
        ({"n_draws": 3}, "n_draws: 3"),
        ({"n_beta": 0.0}, "n_beta"),
        ({"gamma": -1.0}, "gamma"),
        ({"max_r_hat": 1.0}, "max_r_hat"),
        ({"contexts_per_step": 0}, "contexts_per_step"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LearningCoefficient(**change)
