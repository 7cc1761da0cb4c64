"""Recovery: what the truth scores, what a dictionary that is wrong in a known way scores."""

import dataclasses
import math

import pytest
import torch
import toy_planted
from torch import Tensor
from toy_planted import CONFIG, config

from sae_kit.data.planted import (
    PLANTED,
    PlantedConfig,
    PlantedDictionary,
    PlantedRows,
    PlantedStream,
)
from sae_kit.evals.base import PlantedSubject
from sae_kit.evals.recovery import Recovery, Tally, match
from sae_kit.sae.relu import ReLUConfig

N_ROWS = 4096


def rows(planted: PlantedConfig = CONFIG) -> tuple[PlantedDictionary, PlantedRows]:
    dictionary = PlantedDictionary.build(planted)
    return dictionary, PlantedStream(dictionary, split="heldout", seed=0).rows(0, N_ROWS)


def scored(
    dictionary: PlantedDictionary, drawn: PlantedRows, W_dec: Tensor, code: Tensor
) -> dict[str, float]:
    tally = Tally(dictionary, W_dec, carried_cosine=0.3)
    for part in torch.arange(N_ROWS).split(1000):
        recon = dictionary.reconstruct(drawn.codes[part])
        tally.update(PlantedRows(drawn.x[part], drawn.codes[part]), code[part], recon)
    return tally.summary()


PERFECT = {
    "mcc": 1.0,
    "mcc_weighted": 1.0,
    "found": 1.0,
    "uniqueness": 1.0,
    "precision": 1.0,
    "recall": 1.0,
    "f1": 1.0,
    "f1_micro": 1.0,
    "dead_fraction": 0.0,
    "absorption": 0.0,
    "parent_missed": 0.0,
}


def test_the_truth_itself_is_perfect():
    dictionary, drawn = rows()
    found = scored(dictionary, drawn, dictionary.directions, drawn.codes)
    assert {name: found[name] for name in PERFECT} == pytest.approx(PERFECT, abs=1e-6)
    assert found["fvu"] == found["fvu_truth"]
    assert found["l0"] == found["true_l0"] == (drawn.codes > 0).sum().item() / N_ROWS


def test_order_and_scale_of_latents_do_not_matter():
    dictionary, drawn = rows()
    order = torch.randperm(CONFIG.n_features, generator=torch.Generator().manual_seed(3))
    found = scored(dictionary, drawn, 3 * dictionary.directions[order], drawn.codes[:, order])
    assert {name: found[name] for name in PERFECT} == pytest.approx(PERFECT, abs=1e-6)


def test_opposite_directions_are_not_found():
    """Orthogonal ones, so that no other latent can stand in for them."""
    eye = torch.eye(4)
    assert match(-eye).cosines.tolist() == [0.0] * 4
    assert match(eye).cosines.tolist() == [1.0] * 4


def test_matching_is_the_best_of_all_and_not_greedy():
    """Greedy would take 0.9 first and be left with 0.1."""
    matching = match(torch.tensor([[0.9, 0.8], [0.7, 0.1]]))
    assert matching.latents.tolist() == [1, 0]
    assert matching.cosines.tolist() == pytest.approx([0.8, 0.7])


def test_features_without_a_latent_count_as_lost():
    dictionary, drawn = rows()
    half = CONFIG.n_features // 2
    found = scored(dictionary, drawn, dictionary.directions[:half], drawn.codes[:, :half])
    assert found["mcc"] == pytest.approx(0.5, abs=1e-6)
    assert found["recall"] == pytest.approx(half / CONFIG.n_features, abs=0.02)
    share = dictionary.frequencies[:half].sum() / dictionary.frequencies.sum()
    assert found["mcc_weighted"] == pytest.approx(share.item(), abs=1e-6)


def test_random_directions_score_as_chance_does():
    planted = config(d_in=256)
    dictionary, drawn = rows(planted)
    W_dec = torch.randn(64, 256, generator=torch.Generator().manual_seed(4))
    found = scored(dictionary, drawn, W_dec, drawn.codes)
    assert found["mcc"] < math.sqrt(2 * math.log(64) / 256)
    assert found["found"] == 0


def test_latents_that_always_fire_have_the_precision_of_the_frequency():
    dictionary, drawn = rows()
    found = scored(dictionary, drawn, dictionary.directions, torch.ones_like(drawn.codes))
    share = (drawn.codes > 0).double().mean(0)
    assert found["recall"] == 1
    assert found["precision"] == pytest.approx(share.mean().item())
    assert found["f1"] == pytest.approx((2 * share / (1 + share)).mean().item())
    total = share.sum().item()
    assert found["f1_micro"] == pytest.approx(2 * total / (CONFIG.n_features + total))


def test_latents_that_never_fire_are_dead_and_find_nothing():
    dictionary, drawn = rows()
    found = scored(dictionary, drawn, dictionary.directions, torch.zeros_like(drawn.codes))
    assert (found["dead_fraction"], found["f1"], found["precision"], found["l0"]) == (1, 0, 0, 0)
    assert (found["absorption"], found["parent_missed"]) == (0, 1)


def absorbing(dictionary: PlantedDictionary, drawn: PlantedRows) -> Tensor:
    """The true code, but where a child fires its parent's latent does not."""
    code = drawn.codes.clone()
    for child, parent in enumerate(dictionary.parents.tolist()):
        if parent >= 0:
            code[drawn.codes[:, child] > 0, parent] = 0
    return code


def test_children_that_carry_their_parent_absorb_it():
    dictionary, drawn = rows(config(d_in=512))
    W_dec = dictionary.directions.clone()
    is_child = dictionary.parents >= 0
    W_dec[is_child] += dictionary.directions[dictionary.parents[is_child]]
    found = scored(dictionary, drawn, W_dec, absorbing(dictionary, drawn))
    assert (found["absorption"], found["parent_missed"]) == (1, 0)
    assert found["recall"] < 1
    assert found["precision"] == 1


def test_a_parent_that_nothing_carries_is_missed_and_not_absorbed():
    dictionary, drawn = rows(config(d_in=512))
    found = scored(dictionary, drawn, dictionary.directions, absorbing(dictionary, drawn))
    assert (found["absorption"], found["parent_missed"]) == (0, 1)


def test_without_parents_there_is_nothing_to_absorb():
    dictionary, drawn = rows(config(hierarchy=0.0))
    found = scored(dictionary, drawn, dictionary.directions, drawn.codes)
    assert "absorption" not in found
    assert found["mcc"] == pytest.approx(1)


def test_two_latents_of_one_direction_are_not_unique():
    dictionary, drawn = rows()
    W_dec = dictionary.directions.clone()
    W_dec[1] = W_dec[0]  # feature 1 has to share another's nearest latent
    found = scored(dictionary, drawn, W_dec, drawn.codes)
    assert found["uniqueness"] == pytest.approx(1 - 1 / CONFIG.n_features)


def test_the_truth_leaves_the_noise_unexplained():
    """Features that fire alone: the variance is the sum of theirs, and of the noise."""
    planted = config(correlation=0.0, hierarchy=0.0, noise=0.2, d_in=512)
    dictionary, drawn = rows(planted)
    found = scored(dictionary, drawn, dictionary.directions, drawn.codes)
    p, s, mean = dictionary.frequencies, planted.spread, math.sqrt(2 / math.pi)
    first, second = 1 + s * mean, 1 + 2 * s * mean + s**2
    noise = planted.noise**2 * planted.d_in
    expected = noise / (noise + (p * second - (p * first) ** 2).sum().item())
    assert found["fvu_truth"] == pytest.approx(expected, rel=0.02)


# --- of an SAE ------------------------------------------------------------------------------------


def test_an_sae_that_inverts_the_dictionary_recovers_it():
    planted = config(n_features=32, mean_active=3.0, d_in=64, noise=0.01)
    dictionary = PlantedDictionary.build(planted)
    inverse = torch.linalg.pinv(dictionary.directions)
    sae = ReLUConfig(d_sae=32).build(64, generator=torch.Generator().manual_seed(0))
    weights = {"W_enc": inverse, "W_dec": dictionary.directions, "b_dec": dictionary.bias}
    sae.load_weights({**weights, "b_enc": torch.full((32,), -0.3)})
    result = Recovery(n_rows=N_ROWS).run(PlantedSubject(planted=planted, saes={PLANTED: sae}))
    (row,) = result.rows
    assert {name: row[name] for name in PERFECT} == pytest.approx(PERFECT, abs=1e-3)
    assert row["fvu"] > row["fvu_truth"]  # the bias shrinks every value by 0.3
    assert result.arrays[f"latent/{PLANTED}"].tolist() == list(range(32))


def test_figures_show_every_feature():
    result = Recovery(n_rows=1024).run(toy_planted.subject())
    figures = Recovery.plot(result)
    assert set(figures) == {"directions", "firing"}
    drawn = [len(c.get_offsets()) for c in figures["directions"].axes[0].collections]
    assert drawn == [48, 16]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"saes": {}}, r"saes: found \[\]; give run or saes"),
        (lambda s: {"saes": {"blocks.0.hook_resid_pre": s.saes[PLANTED]}}, "saes: found .'blocks"),
        (lambda s: {"planted": config(d_in=47)}, "give an autoencoder of .* width, 47"),
    ],
)
def test_saes_of_something_else_are_refused(change, message):
    subject = toy_planted.subject()
    with pytest.raises(ValueError, match=message):
        Recovery().run(dataclasses.replace(subject, **change(subject)))


def test_directions_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"W_dec: width is 7; give directions of .* 48"):
        Tally(PlantedDictionary.build(CONFIG), torch.ones(3, 7), carried_cosine=0.3)


@pytest.mark.parametrize("fields", [{"n_rows": 0}, {"carried_cosine": 1.0}])
def test_settings_that_mean_nothing_are_refused(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))}: value is"):
        Recovery(**fields)
