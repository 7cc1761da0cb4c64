"""The evaluation on random SAEs: sampled and known values meet."""

import dataclasses

import pytest
import torch

from sae_kit.evals.decoder_coefficient import DecoderCoefficient
from sae_kit.evals.loss_landscape.verdicts import NO_MINIMUM
from sae_kit.evals.shared.draws import generator_of

SMALL = DecoderCoefficient(
    n_tokens=512,
    loss="behaviour",
    gamma=100.0,
    n_beta=100.0,
    n_chains=2,
    n_burn_in=20,
    n_draws=20,
)


@pytest.fixture(scope="module")
def result(subject):
    return SMALL.run(subject)


def test_what_is_sampled_is_what_is_known(result):
    for row in result.rows:
        assert row["coefficient"] == pytest.approx(row["known"], rel=0.05)
        assert row["fall"] == 0.0
        assert row["known"] == row["curvature"] < row["limit"] <= row["n_parameters"] / 2


def test_rows_and_arrays_are_of_every_sae(result, subject):
    assert {row["site"] for row in result.rows} == set(subject.saes)
    for row in result.rows:
        assert row["n_parameters"] == row["n_latents"] * 32
        assert len(result.arrays[f"spectrum/{row['site']}"]) == row["n_fired"]
        trace = result.arrays[f"trace/{row['site']}"]
        assert trace.shape == (2, 40)
        assert trace[:, 0].abs().max() < 1e-5  # chains begin at the SAE
    assert result.scalars["cut_off"] == 1.0
    assert result.scalars["n_data"] < 512  # the first tokens do not count


def test_random_saes_are_no_minimum_of_their_error(subject, result):
    saes = {result.rows[0]["site"]: subject.saes[result.rows[0]["site"]]}
    settings = dataclasses.replace(SMALL, loss="reconstruction", gamma=1.0, n_beta=1e4)
    (row,) = settings.run(dataclasses.replace(subject, saes=saes)).rows
    assert row["fall"] < -row["curvature"]
    assert row["verdict"] == NO_MINIMUM


def test_chains_of_different_sites_draw_apart(result):
    first, second, *_ = (row["site"] for row in result.rows)
    assert generator_of(0, first, 0).initial_seed() != generator_of(0, second, 0).initial_seed()
    assert not torch.equal(result.arrays[f"trace/{first}"], result.arrays[f"trace/{second}"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 0.0}, "gamma: 0.0"),
        ({"step_share": 1.0}, "step_share: 1.0"),
        ({"n_draws": 3}, "n_draws: 3"),
        ({"n_chains": 1}, "n_chains: 1"),
        ({"n_beta": 0.0}, "n_beta"),
        ({"max_r_hat": 1.0}, "max_r_hat"),
        ({"n_tokens": 0}, "n_tokens"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DecoderCoefficient(**change)


def test_a_model_alone_has_no_decoder(subject):
    with pytest.raises(ValueError, match="about SAEs"):
        SMALL.run(dataclasses.replace(subject, saes={}))
