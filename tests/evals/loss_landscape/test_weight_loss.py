"""A model's loss by its weights."""

import pytest
import torch
import toy_subject

from sae_kit.evals.loss_landscape.weight_loss import WeightLoss
from sae_kit.maths import cross_entropy_rows

N, POS = 6, 12


@pytest.fixture(scope="module")
def contexts():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(toy_subject.model().config.n_vocab, (N, POS), generator=generator)


def order():
    return torch.Generator().manual_seed(0)


def loss_of(contexts, kind: str, batch: int = 2) -> WeightLoss:
    return WeightLoss(toy_subject.model(), contexts, kind=kind, batch=batch)


def test_at_the_models_weights_it_is_the_models_loss_whatever_the_contexts(contexts):
    found = loss_of(contexts, "cross_entropy")
    logits = toy_subject.model().run(contexts).logits
    expected = cross_entropy_rows(logits[:, :-1], contexts[:, 1:]).mean().item()
    assert found.n_data == N * (POS - 1)
    assert found.initial == pytest.approx(expected, rel=1e-6)
    chain = found.of_chain(order())
    for _ in range(4):
        assert chain(found.weights[None]).item() == pytest.approx(expected, rel=1e-6)


def test_behaviour_has_its_minimum_at_the_model(contexts):
    found = loss_of(contexts, "behaviour", batch=N)
    assert found.initial == pytest.approx(0.0, abs=1e-6)
    w = found.weights[None].clone().requires_grad_()
    value = found.of_chain(order())(w)
    (gradient,) = torch.autograd.grad(value.sum(), w)
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    text = loss_of(contexts, "cross_entropy", batch=N)
    other = text.weights[None].clone().requires_grad_()
    (steep,) = torch.autograd.grad(text.of_chain(order())(other).sum(), other)
    assert gradient.norm() < 1e-4 * steep.norm()
    noise = 0.05 * torch.randn(w.shape, generator=order())
    assert found.of_chain(order())(w.detach() + noise).item() > 0.01


def test_all_contexts_come_before_any_comes_again(contexts):
    """Of weights elsewhere, a round of batches has the mean of all contexts."""
    found, whole = (loss_of(contexts, "cross_entropy", batch=b) for b in (2, N))
    w = found.weights[None] + 0.03 * torch.randn(found.weights.shape, generator=order())
    chain = found.of_chain(order())
    expected = whole.of_chain(order())(w).item()
    values = [chain(w).item() for _ in range(2 * N // 2)]
    assert sum(values[:3]) / 3 == pytest.approx(expected, rel=1e-5)
    assert sum(values[3:]) / 3 == pytest.approx(expected, rel=1e-5)
    assert max(values[:3]) - min(values[:3]) > 1e-4


def test_what_the_contexts_cost_the_model_itself_is_no_noise(contexts):
    """Near the model, batches differ less than their losses do."""
    found = loss_of(contexts, "cross_entropy", batch=1)
    model = toy_subject.model()
    usual = cross_entropy_rows(model.run(contexts).logits[:, :-1], contexts[:, 1:]).mean(1)
    w = found.weights[None] + 1e-3 * torch.randn(found.weights.shape, generator=order())
    chain = found.of_chain(order())
    values = torch.tensor([chain(w).item() for _ in range(N)])
    assert values.std() < 0.1 * usual.std()


def test_chains_side_by_side_are_chains_alone_and_the_gradient_is_the_models(contexts):
    found = loss_of(contexts, "cross_entropy", batch=N)
    noise = 0.02 * torch.randn(2, len(found.weights), generator=order())
    w = (found.weights + noise).requires_grad_()
    together = found.of_chain(order())(w)
    alone = [found.of_chain(order())(one[None]).item() for one in w]
    assert together.tolist() == pytest.approx(alone, rel=1e-6)
    (gradient,) = torch.autograd.grad(together.sum(), w)
    direction = torch.randn(w.shape[1], generator=order())
    h = 1e-3
    ends = [found.of_chain(order())((w[0] + s * h * direction)[None]).item() for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * h)
    assert (gradient[0] @ direction).item() == pytest.approx(slope, rel=2e-2)


def test_the_model_is_left_as_it_is(contexts):
    model = toy_subject.model()
    before = model.W_E.clone()
    found = loss_of(contexts, "behaviour")
    w = (found.weights[None] + 1.0).requires_grad_()
    found.of_chain(order())(w).sum().backward()
    assert torch.equal(model.W_E, before)
    assert model.W_E.grad is None
