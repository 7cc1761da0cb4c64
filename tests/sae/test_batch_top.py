import pytest
import torch
from torch.testing import assert_close

from sae_kit.products import fast_bf16
from sae_kit.sae import Moment, SparseCode, batch_top, ops
from sae_kit.sae.batch_top import BatchTopConfig, screened_top_of_batch, top_of_batch
from sae_kit.sae.batch_topk import BatchTopKConfig
from sae_kit.sae.matryoshka import MatryoshkaConfig

D_IN, D_SAE, K = 16, 64, 4
CONFIGS = (BatchTopKConfig, MatryoshkaConfig)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(config, *, dtype=torch.float64, **fields):
    generator = torch.Generator().manual_seed(0)
    return (
        config(**{"d_sae": D_SAE, "k": K, "row_warmup": 0.0, **fields})
        .build(D_IN, generator=generator)
        .to(dtype)
    )


def dense_top(x, encoder_rows, b_enc, n):
    """The definition: the n largest positive entries of the whole matrix, the others 0."""
    pre = (x @ encoder_rows.T + b_enc).relu()
    line = pre.flatten().topk(n).values.min()
    return torch.where((pre >= line) & (pre > 0), pre, 0.0)


def check_search(x, encoder_rows, b_enc, n, search=top_of_batch, **tolerance):
    values, pairs = search(x, encoder_rows, b_enc, n)
    found = torch.zeros(len(x), len(b_enc), dtype=x.dtype)
    found[pairs.rows, pairs.latents] = values
    assert_close(found, dense_top(x, encoder_rows, b_enc, n), **tolerance)
    assert (pairs.rows.diff() >= 0).all()
    return pairs


# --- the search -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [1, 7, 300])
@pytest.mark.parametrize("k", [1, 4, 20, 64])
def test_search_finds_the_largest_of_the_batch(n_rows, k, monkeypatch):
    monkeypatch.setattr(ops, "CHUNK", 50 * D_SAE)
    x, encoder_rows, b_enc = draw(n_rows, D_IN), draw(D_SAE, D_IN, seed=1), draw(D_SAE, seed=2)
    check_search(x, encoder_rows, b_enc, k * n_rows)


def test_rows_get_as_many_latents_as_they_deserve():
    x = draw(200, D_IN) * torch.arange(1, 201)[:, None] / 100
    pairs = check_search(x, draw(D_SAE, D_IN, seed=1), draw(D_SAE, seed=2), 4 * 200)
    n_active = pairs.first.diff()
    assert n_active[:20].float().mean() < 1
    assert n_active[-20:].float().mean() > 8


@pytest.mark.parametrize("loud", [True, False])
def test_search_survives_rows_that_mislead_it(loud):
    """The rows that are asked for a bound are all the loud rows, or none of them."""
    n_rows = 10 * batch_top.N_ASKED
    asked = torch.arange(n_rows) % 10 == 0
    x = torch.where((asked == loud)[:, None], 20.0, 0.1) * draw(n_rows, D_IN)
    check_search(x, draw(D_SAE, D_IN, seed=1), draw(D_SAE, seed=2), 3 * n_rows)


def test_fewer_positive_pre_activations_than_wanted_are_all_taken():
    x, encoder_rows = draw(50, D_IN), draw(D_SAE, D_IN, seed=1)
    pairs = check_search(x, encoder_rows, torch.full((D_SAE,), -12.0).double(), 20 * 50)
    assert 0 < len(pairs.rows) < 20 * 50
    _, none = top_of_batch(x, encoder_rows, torch.full((D_SAE,), -1e3).double(), 20 * 50)
    assert len(none.rows) == 0


def test_equal_pre_activations_fill_the_budget_and_no_more():
    values, _ = top_of_batch(torch.zeros(10, D_IN), draw(D_SAE, D_IN).float(), torch.ones(D_SAE), 7)
    assert torch.equal(values, torch.ones(7))


def test_search_in_no_rows():
    values, pairs = top_of_batch(draw(0, D_IN), draw(D_SAE, D_IN), draw(D_SAE), 0)
    assert len(values) == len(pairs.rows) == 0


def test_screened_search_gives_float32_values_of_the_same_latents():
    if not fast_bf16(torch.device("cpu")):
        pytest.skip("this processor has no fast bfloat16 product")
    x = draw(300, 64, dtype=torch.float32)
    encoder_rows, b_enc = (draw(4096, *d, seed=1, dtype=torch.float32) for d in ((64,), ()))
    check_search(x, encoder_rows, b_enc, 16 * 300, screened_top_of_batch, atol=1e-4, rtol=1e-5)


def test_screened_search_without_float32_is_the_exact_one():
    x, encoder_rows, b_enc = draw(30, D_IN), draw(D_SAE, D_IN, seed=1), draw(D_SAE, seed=2)
    check_search(x, encoder_rows, b_enc, 90, screened_top_of_batch)


# --- the threshold --------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
def test_outside_training_a_latent_is_active_above_the_threshold(config):
    sae, x = build(config), draw(30, D_IN)
    pre = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).detach()
    for threshold in (0.0, 1.3, float(pre[3, 5])):  # the last is reached, not exceeded, once
        sae.threshold.fill_(threshold)
        assert_close(sae.encode(x), torch.where(pre > threshold, pre, 0.0))
    sae.threshold.copy_(torch.linspace(0.5, 2, D_SAE))
    assert_close(sae.encode(x), torch.where(pre > sae.threshold, pre, 0.0))
    sae.threshold.fill_(2.0)
    assert isinstance(sae.encode_rows(x), SparseCode)


@pytest.mark.parametrize("config", CONFIGS)
def test_threshold_is_the_mean_line_then_a_running_mean(config):
    sae, lines = build(config), []
    for step in range(20):
        code = sae.forward_train(draw(20, D_IN, seed=step), Moment(step, 1000)).code
        values = code.values if isinstance(code, SparseCode) else code
        lines.append(values[values > 0].min().detach())
    assert_close(sae.threshold, torch.stack(lines).mean().expand(D_SAE))
    for n_steps, weight in ((1000, 0.05), (100, 0.1)):
        before = sae.threshold.clone()
        sae.forward_train(draw(20, D_IN, seed=7), Moment(50, n_steps))
        assert_close(sae.threshold, (1 - weight) * before + weight * lines[7])


def test_threshold_is_0_where_everything_positive_is_active():
    sae = build(BatchTopKConfig, k=D_SAE)
    sae.forward_train(draw(20, D_IN), Moment(0, 1))
    assert not sae.threshold.any()


def rows(seed):
    """Rows of lengths so different that their numbers of active latents are, too."""
    x = draw(512, D_IN, seed=seed, dtype=torch.float32)
    return x * (0.5 * draw(512, 1, seed=seed + 1000, dtype=torch.float32)).exp()


def check_l0(sae, *, rtol):
    l0 = sae.encode_sparse(torch.cat([rows(seed) for seed in range(5000, 5020)])).l0().float()
    assert_close(l0.mean(), torch.tensor(float(K)), atol=0, rtol=rtol)
    assert l0.std() > 1.5


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("d_sae", [64, 512])
def test_mean_l0_outside_training_is_k(config, d_sae):
    sae = build(config, d_sae=d_sae, dtype=torch.float32)
    for step in range(40):
        sae.forward_train(rows(step), Moment(step, 2000))
    check_l0(sae, rtol=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_mean_l0_after_a_short_run_is_k(config):
    """Weights move to the end, and the threshold with them."""
    sae = build(config, row_warmup=0.3, dtype=torch.float32)
    optimiser = torch.optim.Adam(sae.parameters(), lr=3e-3)
    nobody, n_steps = torch.zeros(D_SAE, dtype=torch.bool), 200
    for step in range(n_steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / n_steps)
        at, x = Moment(step, n_steps), rows(step)
        optimiser.zero_grad()
        sae.losses(x, x, sae.forward_train(x, at), at=at, dead=nobody).total.backward()
        sae.after_backward()
        optimiser.step()
        sae.after_step()
    check_l0(sae, rtol=0.08)


@pytest.mark.parametrize("config", CONFIGS)
def test_at_first_every_row_has_k_latents(config):
    sae, x = build(config, row_warmup=0.5), draw(20, D_IN)
    at_first = sae.forward_train(x, Moment(49, 100)).code
    assert isinstance(at_first, SparseCode)
    assert (at_first.l0() == K).all()
    later = sae.forward_train(x, Moment(50, 100)).code
    l0 = (later.dense() if isinstance(later, SparseCode) else later).count_nonzero(dim=1)
    assert l0.sum() == 20 * K
    assert l0.max() > K


@pytest.mark.parametrize("config", CONFIGS)
def test_gradients_at_first_are_those_of_dense_matrices(config):
    sae, x = build(config, row_warmup=1.0), draw(20, D_IN).requires_grad_()
    inputs = (x, *sae.parameters())
    sae.b_enc.data.fill_(-1.5)  # some of a row's k are not positive
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    code = torch.where(pre >= pre.topk(K).values[:, -1:], pre, 0.0).relu()
    assert code.count_nonzero(dim=1).min() < K
    expected = torch.autograd.grad((code @ sae.W_dec + sae.b_dec).square().sum(), inputs)
    out = sae.forward_train(x, Moment(0, 1))
    grads = torch.autograd.grad(out.recon.square().sum(), inputs)
    for own, theirs in zip(grads, expected, strict=True):
        assert_close(own, theirs)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_bad_warmup_is_named(share):
    with pytest.raises(ValueError, match=f"^row_warmup: {share} is no share of the run"):
        BatchTopKConfig(row_warmup=share)


@pytest.mark.parametrize("k", [0, D_SAE + 1])
@pytest.mark.parametrize("config", CONFIGS)
def test_bad_k_is_named(config, k):
    with pytest.raises(ValueError, match=f"^k: {k} does not fit; give 1 to d_sae={D_SAE}"):
        config(d_sae=D_SAE, k=k)


def test_the_shared_config_is_no_architecture():
    assert BatchTopConfig not in BatchTopConfig.variants().values()
