"""Which latents are drawn, that each is as likely as any other, and that numbering is nothing."""

import pytest
import torch
from linear_softmax import covariance, generator, given, normal, orthogonal, pool
from toy_subject import constant_sae, identity_sae

from sae_kit.evals.directions.sae_directions import SAE_DIRECTIONS, Dictionary
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig

D_SAE, D = 60, 16
POOL = pool(covariance(), n=500)
X = POOL.rows[:24].view(6, 4, D).float()
HOSTS = torch.arange(6).repeat_interleave(4)
LATENTS = [name for name in SAE_DIRECTIONS if name != "sae_error"]


def sae(*, seed: int = 0):
    """Some of its latents are dead."""
    made = TopKConfig(d_sae=D_SAE, k=2).build(D, generator=generator(seed))
    with torch.no_grad():
        made.b_enc.copy_(-6 * torch.rand(D_SAE, generator=generator(3)))
    return made


def dictionary(of=None):
    made = Dictionary(sae() if of is None else of, POOL.normal.mean, 6)
    made.watch(X.flatten(0, 1), HOSTS, HOSTS >= 0)
    made.watch_others(POOL.rows[24:80].float())
    return made


def drawn(name, of=None, base=X):
    """The number of the latent that each direction is."""
    of = of or dictionary()
    rows = of.sae.W_enc.T if name.endswith("encoder") else of.sae.W_dec
    directions = SAE_DIRECTIONS[name].of(given(base, POOL), of)
    return torch.cdist(directions.flatten(0, 1), rows).argmin(1).view(base.shape[:2])


def test_every_direction_is_registered_under_its_name():
    assert list(SAE_DIRECTIONS) == [one.name for one in SAE_DIRECTIONS.values()]


def test_what_fires_is_what_the_code_says():
    of = dictionary()
    codes = of.sae.encode(X) != 0
    assert torch.equal(of.fired, codes.any(1))
    others = of.sae.encode(POOL.rows[24:80].float()) != 0
    assert torch.equal(of.alive, codes.any(1).any(0) | others.any(0))
    assert 0 < of.fired.any(0).sum() < of.alive.sum() < D_SAE
    recon = of.sae(X)
    means = of.means()
    assert means["l0"] == pytest.approx(codes.sum(-1).double().mean().item())
    assert means["epsilon"] == pytest.approx((recon - X).norm(dim=-1).mean().item(), rel=1e-5)
    assert means["norm"] == pytest.approx(X.norm(dim=-1).mean().item(), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(recon, X, dim=-1)
    assert means["cosine"] == pytest.approx(cosine.mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", LATENTS)
def test_latents_are_of_the_kind_they_are_called(name):
    of = dictionary()
    latents, hosts = drawn(name, of), torch.arange(6)[:, None]
    here, anywhere = of.fired[hosts, latents], of.alive[latents]
    expected = {"alive": (False, True), "active": (True, True), "dead": (False, False)}
    assert here.unique().tolist() == [expected[name.split("_")[0]][0]]
    assert anywhere.unique().tolist() == [expected[name.split("_")[0]][1]]


def test_every_candidate_is_as_likely_as_any_other():
    of = dictionary()
    latents = drawn("dead_decoder", of, torch.zeros(6, 3000, D))
    n = latents.flatten().bincount(minlength=D_SAE)
    dead = ~of.alive
    assert n[~dead].sum() == 0
    expected = latents.numel() / dead.sum()
    assert ((n[dead] - expected).abs() < 5 * expected**0.5).all()


def test_one_prompts_active_latents_are_its_own():
    """Host by host: what fires in one is nothing to another."""
    of = dictionary()
    latents = drawn("active_decoder", of, torch.zeros(6, 300, D))
    for host in range(6):
        assert set(latents[host].tolist()) == set(of.fired[host].nonzero()[:, 0].tolist())


@pytest.mark.parametrize("name", SAE_DIRECTIONS)
def test_the_numbering_of_the_latents_is_nothing(name):
    """METHODS §11.4: permuted dictionary."""
    of, order = sae(), torch.randperm(D_SAE, generator=generator(5))
    permuted = sae()
    weights = of.weights()
    permuted.load_weights(
        {
            "W_enc": weights["W_enc"][:, order],
            "b_enc": weights["b_enc"][order],
            "W_dec": weights["W_dec"][order],
            "b_dec": weights["b_dec"],
        }
    )
    here = given(X, POOL)
    one, other = (SAE_DIRECTIONS[name].of(here, dictionary(each)) for each in (of, permuted))
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SAE_DIRECTIONS)
def test_the_units_of_the_latents_are_nothing(name):
    """METHODS §11.4: scaled latent; the directions are as long as the latents, and no other."""
    plain, scaled = (ReLUConfig(d_sae=D_SAE).build(D, generator=generator(0)) for _ in range(2))
    weights = {name: tensor.clone() for name, tensor in plain.weights().items()}
    weights["b_enc"] -= 6 * torch.rand(D_SAE, generator=generator(3))
    plain.load_weights(weights)
    units = torch.rand(D_SAE, generator=generator(4)) + 0.5
    weights["W_enc"] = weights["W_enc"] * units
    weights["b_enc"] = weights["b_enc"] * units
    weights["W_dec"] = weights["W_dec"] / units[:, None]
    scaled.load_weights(weights)
    here = given(X, POOL)
    one, other = (SAE_DIRECTIONS[name].of(here, dictionary(each)) for each in (plain, scaled))
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_turned_axes_give_the_same_latents():
    r = orthogonal().float()
    turned = sae()
    weights = {name: tensor.clone() for name, tensor in turned.weights().items()}
    weights["W_enc"] = r.T @ weights["W_enc"]
    weights["W_dec"] = weights["W_dec"] @ r
    weights["b_dec"] = weights["b_dec"] @ r
    turned.load_weights(weights)
    other = Dictionary(turned, POOL.normal.mean @ r.double(), 6)
    other.watch(X.flatten(0, 1) @ r, HOSTS, HOSTS >= 0)
    other.watch_others(POOL.rows[24:80].float() @ r)
    for name in LATENTS:
        assert torch.equal(drawn(name, other), drawn(name))


def test_an_error_leads_to_the_reconstruction():
    of = dictionary()
    d = SAE_DIRECTIONS["sae_error"].of(given(X, POOL), of)
    torch.testing.assert_close(X + d, of.sae(X))


def test_a_model_in_double_precision_has_an_sae_in_single_precision():
    of = dictionary()
    recon = of.reconstruct(X.double())
    assert recon.dtype == torch.float64
    torch.testing.assert_close(recon, of.sae(X).double())


@pytest.mark.parametrize(
    ("made", "possible"),
    [
        # Every latent of the first fires somewhere, none of the second, whose decoder is 0 besides.
        (lambda: identity_sae(D), {"sae_error", "active_decoder", "active_encoder"}),
        (lambda: constant_sae(torch.ones(D)), {"sae_error"}),
    ],
)
def test_kinds_of_which_there_are_none_are_not_possible(made, possible):
    of = Dictionary(made(), POOL.normal.mean, 6)
    base = normal(6, 60, D).float()  # all channels have both signs, in every host
    owners = torch.arange(6).repeat_interleave(60)
    of.watch(base.flatten(0, 1), owners, owners >= 0)
    assert {name for name, each in SAE_DIRECTIONS.items() if each.is_possible(of)} == possible


def test_rows_in_pieces_are_the_same(monkeypatch):
    whole = dictionary()
    monkeypatch.setattr("sae_kit.evals.directions.sae_directions.ROWS", 5)
    pieces = dictionary()
    assert torch.equal(pieces.fired, whole.fired)
    assert torch.equal(pieces.alive, whole.alive)
    assert pieces.means() == pytest.approx(whole.means())
    torch.testing.assert_close(pieces.reconstruct(X), whole.reconstruct(X))


@pytest.mark.parametrize(
    ("metadata", "word"),
    [
        ({"training": {"objective": {"name": "e2e"}}}, "e2e"),
        ({"training": {}}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_an_objective_is_known_where_the_file_says_it(metadata, word):
    made = sae()
    made.metadata = metadata
    assert Dictionary(made, POOL.normal.mean, 1).objective == word
