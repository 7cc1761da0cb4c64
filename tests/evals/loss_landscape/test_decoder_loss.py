"""An SAE's loss around its decoder, whose learning coefficient is known: METHODS 7(f)."""

import pytest
import torch

from sae_kit.evals.loss_landscape.curvature import effective_parameters
from sae_kit.evals.loss_landscape.decoder_loss import DecoderLoss, Kind
from sae_kit.evals.loss_landscape.sgld import Sampler, local_learning_coefficient
from sae_kit.sae.base import SAE
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig

D, F, N = 6, 16, 300


def rows(n: int = N, *, rank: int = D, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, rank, generator=generator) @ torch.randn(rank, D, generator=generator)


def sae_of(kind=TopKConfig, *, seed: int = 1, **fields) -> SAE:
    fields = {"d_sae": F, **({"k": 3} if kind is TopKConfig else {}), **fields}
    return kind(**fields).build(D, generator=torch.Generator().manual_seed(seed))


def loss_of(sae: SAE, x: torch.Tensor, kind: Kind = "reconstruction") -> DecoderLoss:
    return DecoderLoss(sae, x, x, kind=kind)


def sampler(**settings) -> Sampler:
    defaults = {"n_beta": 50.0, "gamma": 5.0, "step": 8e-3, "n_chains": 3}
    return Sampler(**{**defaults, "n_burn_in": 80, "n_draws": 100, **settings})


def fitted(sae: SAE, x: torch.Tensor) -> None:
    """Give it the decoder that reconstructs these rows best."""
    with torch.no_grad():
        codes = sae.encode(x).double()
        best = torch.linalg.lstsq(codes, (x - sae.b_dec).double(), driver="gelsd").solution
        sae.W_dec.copy_(best)


def test_it_is_the_squared_error_in_its_own_units_and_half_the_width_at_the_sae():
    sae, x = sae_of(), rows()
    loss = loss_of(sae, x)
    assert loss(loss.start[None]).item() == pytest.approx(D / 2, rel=1e-5)
    assert loss.initial == pytest.approx(D / 2, rel=1e-5)
    # A change of decoder rows, against the error of an SAE that has it.
    change = torch.randn(len(loss.fired), D, generator=torch.Generator().manual_seed(5))
    found = loss(change.flatten()[None]).item()
    rms = sae.encode(x).square().mean(0).sqrt()[loss.fired]
    with torch.no_grad():
        sae.W_dec[loss.fired] += loss.sigma * change / rms[:, None]
        expected = (x - sae.decode(sae.encode(x))).square().sum(1).mean() / (2 * loss.sigma**2)
    assert found == pytest.approx(expected.item(), rel=1e-4)


def test_the_behavioural_loss_has_its_minimum_at_any_sae():
    loss = loss_of(sae_of(), rows(), "behaviour")
    assert loss(loss.start[None]).item() == 0.0
    assert loss((loss.start + 0.1)[None]).item() > 0
    assert loss.known(sampler()).fall == 0.0


def test_scaling_a_latent_against_its_decoder_row_or_the_activations_changes_nothing():
    sae, x = sae_of(ReLUConfig), rows()
    known = loss_of(sae, x).known(sampler())
    with torch.no_grad():
        sae.encoder_rows[2] *= 8
        sae.b_enc[2] *= 8
        sae.W_dec[2] /= 8
    assert loss_of(sae, x).known(sampler()).coefficient == pytest.approx(
        known.coefficient, rel=1e-4
    )
    with torch.no_grad():
        sae.b_enc *= 3
        sae.b_dec *= 3
    assert loss_of(sae, 3 * x).known(sampler()).coefficient == pytest.approx(
        known.coefficient, rel=1e-4
    )


def test_without_a_pull_it_is_the_rank_of_the_codes_times_half_the_width():
    """Known ranks: a latent that never fires, and two that always fire alike."""
    sae, x = sae_of(ReLUConfig), rows()
    assert loss_of(sae, x).limit() == F * D / 2
    with torch.no_grad():
        sae.b_enc[3] = -1e6  # never
        sae.encoder_rows[5], sae.b_enc[5] = 2 * sae.encoder_rows[4], 2 * sae.b_enc[4]  # a twin
    loss = loss_of(sae, x)
    assert len(loss.fired) == F - 1
    assert loss.limit() == (F - 2) * D / 2
    assert loss.known(sampler(gamma=1e-9, step=1e-12)).curvature == pytest.approx(
        (F - 2) * D / 2, rel=1e-5
    )
    few = loss_of(sae, rows(4))
    assert few.limit() <= 4 * D / 2  # no more than there are rows


def test_it_is_half_the_effective_number_of_parameters():
    loss, settings = loss_of(sae_of(), rows()), sampler(step=1e-9)
    directions = loss.spectrum().repeat_interleave(D)
    expected = effective_parameters(directions / 2, 1 / settings.n_beta, scale=settings.gamma**-0.5)
    assert loss.known(settings).curvature == pytest.approx(expected / 2, rel=1e-6)


@pytest.mark.parametrize("kind", ["reconstruction", "behaviour"])
def test_sampling_finds_what_is_known(kind):
    loss = loss_of(sae_of(), rows(), kind)
    found = local_learning_coefficient(loss, loss.start, sampler(), seed=0)
    known = loss.known(sampler())
    spread = found.by_chain.std().item() / 3**0.5
    assert found.coefficient == pytest.approx(known.coefficient, abs=max(4 * spread, 0.02 * D * F))
    assert found.r_hat < 1.2


def test_a_decoder_that_no_other_one_betters_does_not_fall():
    sae, x = sae_of(), rows()
    assert loss_of(sae, x).known(sampler()).fall < -1
    fitted(sae, x)
    assert loss_of(sae, x).known(sampler()).fall == pytest.approx(0.0, abs=1e-3)


def test_the_fall_without_a_pull_is_what_the_best_decoder_gains():
    sae, x = sae_of(), rows()
    before = loss_of(sae, x)
    known = before.known(sampler(gamma=1e-6, step=1e-12))
    fitted(sae, x)
    after = loss_of(sae, x)
    gained = (1 - after.sigma**2 / before.sigma**2) * D / 2
    assert known.fall == pytest.approx(-sampler().n_beta * gained, rel=1e-3)


def test_a_transcoders_target_is_what_it_reconstructs():
    sae = TopKConfig(d_sae=F, k=3, apply_b_dec_to_input=False).build(
        D, 4, generator=torch.Generator().manual_seed(1)
    )
    x, target = rows(), rows(seed=3)[:, :4]
    loss = DecoderLoss(sae, x, target, kind="reconstruction")
    assert loss.width == 4
    assert loss.sigma == pytest.approx((target - sae(x)).square().mean().sqrt().item(), rel=1e-5)


def test_what_has_no_such_loss_is_refused():
    sae, x = sae_of(ReLUConfig), rows()
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    with pytest.raises(ValueError, match="0 latents fire on 300 rows"):
        loss_of(sae, x)
    with torch.no_grad():
        sae.b_enc.zero_()
        exact = sae(x)
    with pytest.raises(ValueError, match="has no error"):
        DecoderLoss(sae, x, exact, kind="reconstruction")
    sae.normalization = "layer_norm"
    with pytest.raises(ValueError, match="normalization 'layer_norm'"):
        loss_of(sae, x)
