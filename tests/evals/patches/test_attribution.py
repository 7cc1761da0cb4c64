"""Attribution against exact patching, where they must agree and where they need not."""

import pytest
import torch
from circuits.linear import linear
from toy_pairs import pairs_of, random_model, random_pairs, scenes

from sae_kit.data.pairs import Pairs
from sae_kit.evals.patches import attribution
from sae_kit.evals.patches.attribution import gradients
from sae_kit.evals.patches.units import KINDS
from sae_kit.evals.shared.answers import Answers
from sae_kit.models.gpt2 import GPT2


def both_ways(
    model: GPT2, own: Pairs, word: str, direction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change of the logit difference by attribution and by patching, `[units pairs]`."""
    stage, runs, both = scenes(model, own)
    scene, answers = both[direction], Answers(own, runs.clean.logits)
    groups = KINDS[word].of(model, own, {})
    sites = [units.site for units in groups]
    found = gradients(stage, scene.base, answers, "logit_difference", sites)
    before = answers.read(scene.base.logits).metric("logit_difference")
    estimated, exact = [], []
    for units in groups:
        act, source = scene.base.acts[units.site], scene.source(units)
        estimated.append(units.attribution(found[units.site], act, source))
        with torch.no_grad():
            each = dict(scene.each(units, range(len(units))))
        exact += [
            answers.read(each[unit]).metric("logit_difference") - before
            for unit in range(len(units))
        ]
    return torch.cat(estimated), torch.stack(exact).double()


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("word", ["residual", "mlp_out", "mlp"])
def test_in_a_linear_net_it_is_exact(word: str, direction: str) -> None:
    """§8(f), F19: attribution patching = patching."""
    made = linear()
    estimated, exact = both_ways(made.model, pairs_of(made), word, direction)
    torch.testing.assert_close(estimated, exact, rtol=1e-9, atol=1e-9)
    assert exact.abs().max() > 0.1


@pytest.mark.parametrize("word", ["residual", "head_z", "head_pattern", "neuron"])
def test_it_is_the_derivative_of_patching(word: str) -> None:
    """With corrupted prompts that hardly differ, the error is of second order."""
    model = random_model(double=True)
    errors = []
    for size in (1e-3, 5e-4):
        near = random_model(double=True)
        with torch.no_grad():  # the token the prompts differ by is embedded almost alike
            near.W_E[1] = near.W_E[0] + size * model.W_E[1]
        clean = torch.zeros(2, 4, dtype=torch.long)
        corrupt = clean.clone()
        corrupt[:, 1:3] = 1
        own = random_pairs(n=2)
        own = Pairs(
            clean=clean,
            corrupt=corrupt,
            answers=own.answers,
            wrong=own.wrong,
            columns=random_pairs(n=2).columns[:4],
        )
        estimated, exact = both_ways(near, own, word, "noising")
        assert exact.abs().max() > 1e-6
        errors.append((estimated - exact).abs().max().item())
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.05)


def test_how_many_pairs_run_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, own = random_model(double=True), random_pairs()
    stage, runs, both = scenes(model, own)
    answers, found = Answers(own, runs.clean.logits), []
    site = "blocks.1.attn.hook_z"
    for limit in (1, 10_000):
        monkeypatch.setattr(attribution, "GRADIENT_POSITIONS", limit)
        found.append(gradients(stage, both["noising"].base, answers, "kl", [site])[site])
    # KL to the clean run has its minimum there.
    torch.testing.assert_close(found[0], torch.zeros_like(found[0]), atol=1e-12, rtol=0)
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=0)


def test_the_model_keeps_no_gradient() -> None:
    model, own = random_model(), random_pairs()
    stage, runs, both = scenes(model, own)
    site = "blocks.0.hook_mlp_out"
    answers = Answers(own, runs.clean.logits)
    found = gradients(stage, both["denoising"].base, answers, "prob", [site])
    assert found[site].shape == both["denoising"].base.acts[site].shape
    assert not found[site].requires_grad
    assert all(p.grad is None for p in model.parameters())
