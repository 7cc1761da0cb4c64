import pytest
import torch

from sae_kit.sae import Losses, Moment


def test_total_is_the_sum_of_terms_and_terms_hold_no_graph():
    leaf = torch.tensor(2.0, requires_grad=True)
    losses = Losses(leaf * 3, {"b": leaf * 4})
    assert losses.total == 14
    assert losses.terms == {"mse": 6, "b": 8}
    assert not losses.terms["b"].requires_grad
    losses.total.backward()
    assert leaf.grad == 7


def test_a_warm_up_rises_to_one_over_its_share_of_the_run():
    assert [Moment(step, 100).rise(0.5) for step in (0, 25, 50, 99)] == [0, 0.5, 1, 1]
    assert Moment(0, 100).rise(0.0) == 1


def test_a_moment_cannot_be_changed():
    with pytest.raises(AttributeError):
        Moment(0, 100).step = 1
