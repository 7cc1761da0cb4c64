"""The transformer that adds, and its cut into sections."""

import pytest
import torch

from sae_kit.models.modular_addition import (
    NODE_LAYERS,
    AdditionConfig,
    AdditionTransformer,
    all_pairs,
)

SMALL = AdditionConfig(prime=7, d_model=8, n_head=2, d_mlp=16)


@pytest.fixture
def model() -> AdditionTransformer:
    return AdditionTransformer(SMALL, generator=torch.Generator().manual_seed(0))


def test_pairs_are_all_of_them_in_the_order_of_a_grid():
    pairs = all_pairs(7).view(7, 7, 2)
    assert pairs[3, 5].tolist() == [3, 5]
    assert len({tuple(pair) for pair in all_pairs(7).tolist()}) == 49


def test_sections_one_behind_another_are_the_model(model):
    pairs = all_pairs(7)
    x = model.embed(pairs)
    assert x.shape == (49, 3, 8)
    for section in model.sections:
        x = section(x)
    assert x.shape == (49, 1, 8)
    torch.testing.assert_close(x[:, 0], model(pairs))
    assert len(NODE_LAYERS) == len(model.sections) + 1


def test_without_positions_the_order_of_the_numbers_makes_no_difference(model):
    pairs = all_pairs(7)
    assert (model(pairs) - model(pairs.flip(1))).abs().max() > 0.01
    with torch.no_grad():
        model.positions.zero_()
    torch.testing.assert_close(model(pairs), model(pairs.flip(1)))


def test_attention_is_a_mean_of_values_weighted_by_softmax(model):
    x = model.embed(torch.tensor([[2, 5]]))
    attention = model.sections[0]
    q, k, v = attention.query(x)[0, -1], attention.key(x)[0], attention.value(x)[0]
    mixed = []
    for head in (slice(0, 4), slice(4, 8)):
        pattern = (k[:, head] @ q[head] / 2).softmax(0)  # the root of four channels
        mixed.append(pattern @ v[:, head])
    expected = x[0, -1] + attention.out(torch.cat(mixed))
    torch.testing.assert_close(attention(x)[0, 0], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prime": 9}, "prime: 9 is no odd prime"),
        ({"prime": 2}, "prime: 2"),
        ({"n_head": 3}, "not divisible by n_head 3"),
        ({"n_head": 0}, "n_head: 0 is not positive"),
        ({"d_mlp": 0}, "d_mlp: 0 is not positive"),
        ({"d_model": -4}, "d_model: -4 is not positive"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AdditionConfig(**{"prime": 7, "d_model": 8, "n_head": 2, "d_mlp": 16, **change})
