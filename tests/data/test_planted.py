"""Planted rows: frequencies, hierarchy and correlation as asked for; positions are numbers."""

import math

import pytest
import torch
from toy_planted import CONFIG, config

from sae_kit.data.planted import (
    BLOCK_ROWS,
    PLANTED,
    PlantedDictionary,
    PlantedSource,
    PlantedStream,
)
from sae_kit.dist import World

N_ROWS = 20 * BLOCK_ROWS
CPU = torch.device("cpu")


def stream(seed: int = 0, split: str = "train", **changes) -> PlantedStream:
    return PlantedStream(PlantedDictionary.build(config(**changes)), split=split, seed=seed)


def source(rank: int = 0, size: int = 1, *, batch_rows: int = 96, seed: int = 0) -> PlantedSource:
    dictionary = PlantedDictionary.build(CONFIG)
    world = World(rank, size)
    return PlantedSource(dictionary, batch_rows=batch_rows, seed=seed, world=world, device=CPU)


# --- what is drawn --------------------------------------------------------------------------------


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_every_feature_fires_as_often_as_it_should(correlation):
    rows = stream(correlation=correlation)
    expected = rows.dictionary.frequencies
    share = (rows.rows(0, N_ROWS).codes > 0).double().mean(0)
    error = (expected * (1 - expected) / N_ROWS).sqrt()
    assert ((share - expected).abs() < 5 * error).all()


def test_the_expected_l0_is_the_sum_of_frequencies():
    dictionary = PlantedDictionary.build(CONFIG)
    assert dictionary.frequencies.sum().item() == pytest.approx(CONFIG.mean_active, rel=1e-12)
    l0 = (stream().rows(0, N_ROWS).codes > 0).sum(1).double()
    assert abs(l0.mean() - CONFIG.mean_active) < 5 * l0.std() / math.sqrt(N_ROWS)


def test_frequencies_without_a_parent_fall_as_a_power_of_the_rank():
    dictionary = PlantedDictionary.build(config(zipf_exponent=0.7))
    roots = dictionary.frequencies[dictionary.parents < 0]
    ranks = torch.arange(1, len(roots) + 1).double()
    assert torch.allclose(roots / roots[0], ranks**-0.7, rtol=1e-12)


def test_children_fire_only_with_their_parent_and_then_as_often_as_asked():
    rows = stream()
    parents = rows.dictionary.parents
    fires = rows.rows(0, N_ROWS).codes > 0
    children = (parents >= 0).nonzero()[:, 0]
    assert len(children) == round(CONFIG.hierarchy * CONFIG.n_features)
    assert (parents[parents[children]] == -1).all()
    assert parents[children].unique(return_counts=True)[1].max() <= 4
    assert not (fires[:, children] & ~fires[:, parents[children]]).any()
    n = fires[:, parents[children]].sum(0)
    share = fires[:, children].sum(0) / n
    p = CONFIG.child_probability
    assert ((share - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()


def test_features_of_a_group_fire_together_as_two_correlated_normals_do():
    """Sheppard: both are below their medians with probability 1/4 + asin(rho) / 2 pi."""
    rho = 0.6
    even = {"n_features": 16, "mean_active": 8.0, "zipf_exponent": 0.0, "hierarchy": 0.0}
    rows = stream(correlation=rho, **even)
    fires = (rows.rows(0, N_ROWS).codes > 0).double()
    together = fires.T @ fires / N_ROWS
    groups = rows.dictionary.groups
    same = groups[:, None] == groups
    apart = ~same
    same.fill_diagonal_(False)
    assert same.any()
    expected = 0.25 + math.asin(rho) / (2 * math.pi)
    assert torch.allclose(together[same], torch.tensor(expected).double(), atol=0.02)
    assert torch.allclose(together[apart], torch.tensor(0.25).double(), atol=0.02)


def test_rows_are_offset_features_and_noise():
    drawn = stream().rows(0, N_ROWS)
    dictionary = PlantedDictionary.build(CONFIG)
    noise = drawn.x - dictionary.bias - drawn.codes @ dictionary.directions
    assert noise.std().item() == pytest.approx(CONFIG.noise, rel=0.01)
    assert dictionary.bias.norm().item() == pytest.approx(CONFIG.offset, rel=1e-5)
    assert torch.allclose(dictionary.directions.norm(dim=1), torch.ones(CONFIG.n_features))
    assert drawn.codes[drawn.codes > 0].min() >= 1
    half_normal = (drawn.codes[drawn.codes > 0] - 1) / CONFIG.spread
    assert half_normal.mean().item() == pytest.approx(math.sqrt(2 / math.pi), rel=0.02)


def test_without_spread_and_noise_rows_are_sums_of_directions():
    rows = stream(spread=0.0, noise=0.0, offset=0.0)
    drawn = rows.rows(0, 64)
    assert torch.equal(drawn.codes, (drawn.codes > 0).float())
    assert torch.allclose(drawn.x, drawn.codes @ rows.dictionary.directions)


# --- the same for the same seed -------------------------------------------------------------------


def test_dictionary_depends_on_the_config_alone():
    a, b = PlantedDictionary.build(CONFIG), PlantedDictionary.build(CONFIG)
    assert torch.equal(a.directions, b.directions)
    other = PlantedDictionary.build(config(seed=1))
    assert not torch.equal(a.directions, other.directions)


def test_rows_have_numbers():
    whole = stream().rows(0, 3 * BLOCK_ROWS)
    rows = stream()
    for start, n in ((900, 1500), (0, 10), (2 * BLOCK_ROWS, 1), (1023, 2)):
        part = rows.rows(start, n)
        assert torch.equal(part.x, whole.x[start : start + n])
        assert torch.equal(part.codes, whole.codes[start : start + n])


def test_seeds_and_splits_have_no_row_in_common():
    rows = [stream(0), stream(1), stream(0, "heldout")]
    firsts = torch.cat([one.rows(0, 100).x for one in rows])
    assert len(firsts.unique(dim=0)) == 300


# --- as training rows -----------------------------------------------------------------------------


def test_batches_are_scaled_rows_of_the_stream_in_order():
    one = source()
    batches = [next(one) for _ in range(30)]
    x = torch.cat([batch.acts[PLANTED] for batch in batches])
    expected = stream().rows(0, len(x)).x * one.scales[PLANTED]
    assert torch.equal(x, expected)
    assert one.widths == {PLANTED: CONFIG.d_in}
    assert x.norm(dim=1).mean().item() == pytest.approx(math.sqrt(CONFIG.d_in), rel=0.02)


def test_it_goes_on_exactly_where_it_stood():
    one = source()
    for _ in range(7):
        next(one)
    state = one.state_dict()
    expected = [next(one).acts[PLANTED] for _ in range(5)]
    other = source()
    other.load_state_dict(state)
    assert all(torch.equal(next(other).acts[PLANTED], rows) for rows in expected)


def test_sampling_leaves_the_position():
    one, other = source(), source()
    assert one.sample(PLANTED, 50).shape == (50, CONFIG.d_in)
    assert torch.equal(next(one).acts[PLANTED], next(other).acts[PLANTED])


def test_processes_share_every_batch():
    alone = source(batch_rows=96)
    parts = [source(rank, 3, batch_rows=32) for rank in range(3)]
    for _ in range(3):
        together = torch.cat([next(part).acts[PLANTED] for part in parts])
        assert torch.equal(next(alone).acts[PLANTED], together)
    assert {part.state_dict()["position"] for part in parts} == {3 * 96}


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_in": 0}, "d_in: 0 is not positive"),
        ({"noise": -0.1}, "noise: value is -0.1; give 0 or more"),
        ({"noise": math.nan}, "noise: value is nan"),
        ({"correlation": 1.0}, "correlation: value is 1.0; give at least 0 and less than 1"),
        ({"hierarchy": 0.9}, "hierarchy: value is 0.9; give 0 to 0.8"),
        ({"child_probability": 0.0}, "child_probability: value is 0.0"),
        ({"mean_active": 0.0}, "mean_active: value is 0.0"),
        ({"mean_active": 60.0}, "commonest feature would have to fire .* times a row"),
    ],
)
def test_an_impossible_dictionary_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_the_limit_that_a_refusal_names_is_one():
    with pytest.raises(ValueError, match="give less than") as refusal:
        config(mean_active=60.0)
    limit = float(str(refusal.value).split("give less than ")[1].split(",")[0])
    config(mean_active=0.99 * limit)
