"""Clean activations and predictions to ablate, and SAE latents in the place of a basis."""

import pytest
import torch
import toy_subject

from sae_kit.evals.basis.basis_bench import Bench, Latents

SITES = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_KIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").mkdir()
    subject = toy_subject.subject(tmp_path / "text")
    return Bench(subject, SITES, context_size=8, n_contexts=5, n_test_contexts=3, batch=2)


def test_activations_put_back_change_nothing(bench):
    assert bench.tested[SITES[0]].shape == (3, 7, 32)
    assert bench.fitted[SITES[1]].shape == (5, 7, 32)
    for site in SITES:
        assert bench.kl(site, bench.tested[site]).abs().max() < 1e-12


def test_another_activation_changes_the_predictions_at_and_after_its_position(bench):
    x = bench.tested[SITES[1]].clone()
    x[:, 3] += torch.arange(32.0)  # not a constant, which LayerNorm would not see
    kl = bench.kl(SITES[1], x)
    assert kl[:, :3].abs().max() < 1e-12
    assert (kl[:, 3:] > 1e-9).all()


def test_an_interval_holds_the_mean(bench):
    found = bench.interval(torch.arange(21.0).view(3, 7))
    assert found["kl"] == pytest.approx(10.0)
    assert found["kl_low"] < found["kl"] < found["kl_high"]


def test_all_latents_kept_is_the_reconstruction_and_the_most_contributing_stay():
    sae = toy_subject.identity_sae(4)
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 5.0, 2.0, 0.5]
    )
    latents = Latents(sae, x)
    torch.testing.assert_close(latents.kept(x, 8), x)
    # The two latents of channel 1 vary most; the others are at their mean.
    kept = latents.kept(x, 2)
    torch.testing.assert_close(kept[..., 1], x[..., 1])
    others = kept[..., [0, 2, 3]].flatten(0, 1)
    torch.testing.assert_close(others, x[..., [0, 2, 3]].flatten(0, 1).mean(0).expand(15, 3))
