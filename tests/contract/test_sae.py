"""What every registered SAE architecture must do. A new one is tested by being registered."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from sae_kit.config import from_node
from sae_kit.sae import Moment, SAEConfig, SparseCode

ARCHS = list(SAEConfig.variants())
D_IN, D_OUT, D_SAE = 6, 5, 12
END = Moment(1000, 1000)

# Architectures whose gradients are by design not those of the loss: straight-through estimates,
# terms that reach some of the parameters only.
HELD_CONSTANT = {"gated", "jumprelu", "p_anneal"}

# Architectures whose latents form k groups of consecutive ones, which a permutation has to keep.
GROUPED = {"groupmax"}

# Small values of fields whose defaults do not fit d_sae 12 (or 4, below).
SMALL = {"k": 2, "target_l0": 2.0}


@pytest.fixture(params=ARCHS)
def arch(request):
    return request.param


def config(arch, **fields):
    known = SAEConfig.variants()[arch].__dataclass_fields__
    small = {name: value for name, value in SMALL.items() if name in known}
    return from_node(SAEConfig, {"arch": arch, "d_sae": D_SAE, **small, **fields})


def build(arch, *, d_in=D_IN, d_out=None, seed=0, dtype=torch.float64, **fields):
    generator = torch.Generator().manual_seed(seed)
    sae = config(arch, **fields).build(d_in, d_out, generator=generator)
    sae = sae.to(dtype)
    noise = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():  # a trained SAE has no zero biases, nor tied weights
        for parameter in sae.parameters():
            draw = torch.randn(parameter.shape, generator=noise, dtype=dtype)
            parameter.add_(draw, alpha=0.1)
    sae.after_step()
    return sae


def draw(*shape, seed=7, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def nobody(sae):
    return torch.zeros(sae.d_sae, dtype=torch.bool)


def transcoder(arch, **fields):
    return build(arch, d_out=D_OUT, apply_b_dec_to_input=False, **fields)


def loss(sae, x, target, *, dead=None, at=END):
    dead = nobody(sae) if dead is None else dead
    return sae.losses(x, target, sae.forward_train(x, at), at=at, dead=dead)


@pytest.mark.parametrize("shape", [(5,), (1,), (), (2, 3)])
def test_shapes(arch, shape):
    sae, x = build(arch), draw(*shape, D_IN)
    assert sae.encode(x).shape == (*shape, D_SAE)
    assert sae.encode_sparse(x).values.shape[:-1] == shape
    assert sae.decode(sae.encode(x)).shape == x.shape
    assert sae.decode(sae.encode_sparse(x)).shape == x.shape
    assert sae(x).shape == x.shape


def test_forward_is_decode_of_encode(arch):
    sae, x = build(arch), draw(20, D_IN)
    assert_close(sae(x), sae.decode(sae.encode(x)))
    assert_close(sae(x), sae.decode(sae.encode_sparse(x)))


def test_decode_is_the_documented_algebra(arch):
    sae, x = build(arch), draw(20, D_IN)
    assert_close(sae(x), sae.encode(x) @ sae.W_dec + sae.b_dec)


def test_sparse_code_is_the_dense_code(arch):
    sae, x = build(arch), draw(20, D_IN)
    dense, sparse = sae.encode(x), sae.encode_sparse(x)
    assert_close(sparse.dense(), dense)
    assert torch.equal(sparse.l0(), (dense != 0).sum(-1))
    assert torch.equal(sparse.fired(), (dense != 0).any(0))
    assert dense.any(), "an SAE that never fires passes everything above"


def test_codes_are_not_negative(arch):
    assert (build(arch).encode(draw(50, D_IN)) >= 0).all()


def test_a_row_never_sees_another(arch):
    sae, x = build(arch), draw(20, D_IN)
    alone = torch.cat([sae.encode(row[None]) for row in x])
    assert_close(sae.encode(x), alone)
    assert_close(sae.encode(x.flip(0)), alone.flip(0))


def test_gradients_equal_finite_differences(arch):
    """Of the whole training loss, in every parameter and the input, on four latents."""
    if arch in HELD_CONSTANT:
        pytest.skip("parts of its loss are held constant, or have no derivative; see its own test")
    sae = build(arch, d_in=3, d_sae=4)
    x, target = draw(5, 3), draw(5, 3, seed=8)
    x.requires_grad_()
    loss(sae, x, target).total.backward()
    delta = 1e-6
    for tensor in (x, *sae.parameters()):
        for index in itertools.product(*map(range, tensor.shape)):
            sides = []
            for sign in (1, -1):
                with torch.no_grad():
                    tensor[index] += sign * delta
                    sides.append(loss(sae, x, target).total)
                    tensor[index] -= sign * delta
            numeric = (sides[0] - sides[1]) / (2 * delta)
            assert_close(tensor.grad[index], numeric, atol=1e-6, rtol=1e-5)


def test_total_is_the_sum_of_the_terms(arch):
    sae, x = build(arch), draw(20, D_IN)
    for dead in (nobody(sae), ~nobody(sae)):
        out = loss(sae, x, draw(20, D_IN, seed=8), dead=dead)
        assert_close(out.total.detach(), torch.stack(list(out.terms.values())).sum())
        assert "mse" in out.terms


def test_loss_looks_at_the_target_not_the_input(arch):
    sae, x = build(arch), draw(20, D_IN)
    exact = sae.forward_train(x, END)
    out = sae.losses(x, exact.recon.detach(), exact, at=END, dead=nobody(sae))
    assert_close(out.mse.detach(), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("n_rows", [1, 20])
@pytest.mark.parametrize("share_dead", [0.0, 0.5, 1.0])
def test_every_batch_and_dead_mask_gives_finite_gradients(arch, n_rows, share_dead):
    sae, x = build(arch), draw(n_rows, D_IN)
    dead = torch.arange(D_SAE) < share_dead * D_SAE
    out = loss(sae, x, x, dead=dead)
    out.total.backward()
    assert out.total.isfinite()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_steps_keep_unit_decoder_rows_at_norm_1(arch):
    sae, x = build(arch), draw(20, D_IN)
    if not sae.unit_norm:
        pytest.skip("its decoder is free")
    optimiser = torch.optim.Adam(sae.parameters(), lr=0.1)
    for step in range(3):
        optimiser.zero_grad()
        loss(sae, x, x, at=Moment(step, 3)).total.backward()
        sae.after_backward()
        parallel = (sae.W_dec.grad * sae.W_dec).sum(-1)
        assert_close(parallel, torch.zeros_like(parallel))
        optimiser.step()
        sae.after_step()
        norms = sae.W_dec.norm(dim=-1)
        assert_close(norms, torch.ones_like(norms))


def test_training_lowers_the_loss(arch):
    sae, x = build(arch), draw(64, D_IN)
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
    first = loss(sae, x, x).total.detach()
    for _ in range(100):
        optimiser.zero_grad()
        loss(sae, x, x).total.backward()
        sae.after_backward()
        optimiser.step()
        sae.after_step()
    assert loss(sae, x, x).total < 0.8 * first


def test_init_from_puts_b_dec_amid_the_data(arch):
    sae, offset = build(arch), torch.arange(D_IN, dtype=torch.float64) * 10
    rows = draw(2000, D_IN) + offset
    sae.init_from(rows, rows)
    assert_close(sae.b_dec.detach(), offset, atol=0.2, rtol=0)


def test_init_from_centres_the_encoder_whoever_subtracts_b_dec(arch):
    """A constant added to all data changes no initial code."""
    rows = draw(2000, D_IN)
    for apply_b_dec_to_input in (True, False):
        codes = []
        for offset in (0.0, 10.0):
            sae = build(arch, apply_b_dec_to_input=apply_b_dec_to_input)
            with torch.no_grad():
                sae.b_enc.zero_()
            sae.init_from(rows + offset, rows + offset)
            codes.append(sae.encode(rows[:50] + offset))
        assert_close(codes[0], codes[1])


def permutation(arch):
    """Of all latents, or of groups and of the latents inside each."""
    n_groups = SMALL["k"] if arch in GROUPED else 1
    within = draw(n_groups, D_SAE // n_groups).argsort(-1)
    groups = draw(n_groups, 1, seed=8).argsort(0)
    return (groups * (D_SAE // n_groups) + within).flatten()


def test_permuted_dictionary_gives_the_same_reconstruction(arch):
    sae, other, x = build(arch), build(arch, seed=5), draw(20, D_IN)
    order = permutation(arch)
    axis = {"W_enc": 1, "b_dec": None}
    other.load_weights(
        {
            name: tensor
            if (along := axis.get(name, 0)) is None
            else tensor.index_select(along, order)
            for name, tensor in sae.weights().items()
        }
    )
    assert_close(other(x), sae(x))
    assert_close(other.encode(x), sae.encode(x)[:, order])


def test_the_generator_decides_every_bit(arch):
    def trained(seed):
        sae = build(arch, seed=seed, dtype=torch.float32)
        x = draw(64, D_IN, dtype=torch.float32)
        optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
        for step in range(5):
            optimiser.zero_grad()
            loss(sae, x, x, at=Moment(step, 5), dead=torch.arange(D_SAE) % 2 == 0).total.backward()
            sae.after_backward()
            optimiser.step()
            sae.after_step()
        return sae.weights()

    state = torch.get_rng_state()
    first, again, other = trained(0), trained(0), trained(1)
    for name in first:
        assert torch.equal(first[name], again[name]), name
    assert not torch.equal(first["W_dec"], other["W_dec"])
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_folding_equals_scaling_and_unscaling(arch, apply_b_dec_to_input):
    sae, x = build(arch, apply_b_dec_to_input=apply_b_dec_to_input), draw(20, D_IN)
    scale = 3.7
    code, recon = sae.encode(x * scale), sae(x * scale) / scale
    sae.fold_scales(scale, scale)
    assert_close(sae.encode(x), code)
    assert_close(sae(x), recon)


@pytest.mark.parametrize("skip", [True, False])
def test_transcoder_reads_one_width_and_writes_another(arch, skip):
    sae, x = transcoder(arch, skip=skip), draw(20, D_IN)
    target = draw(20, D_OUT, seed=8)
    expected = sae.encode(x) @ sae.W_dec + sae.b_dec + (x @ sae.W_skip.T if skip else 0)
    assert_close(sae(x), expected)
    out = loss(sae, x, target, dead=torch.arange(D_SAE) < 4)
    out.total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in sae.parameters())
    code, recon = sae.encode(x * 3.0), sae(x * 3.0) / 0.5
    sae.fold_scales(3.0, 0.5)
    assert_close(sae.encode(x), code)
    assert_close(sae(x), recon)


def test_what_does_not_fit_a_transcoder_is_refused(arch):
    with pytest.raises(ValueError, match="apply_b_dec_to_input: true does not fit a transcoder"):
        build(arch, d_out=D_OUT)
    with pytest.raises(ValueError, match="skip: true"):
        build(arch, skip=True)


def test_state_dict_round_trip_is_bit_exact(arch):
    sae, other = build(arch), build(arch, seed=3)
    other.load_state_dict(sae.state_dict())
    x = draw(20, D_IN)
    assert torch.equal(other(x), sae(x))


def test_input_gradient_passes_through_the_sae(arch):
    sae, x = build(arch), draw(4, D_IN).requires_grad_()
    sae(x).sum().backward()
    assert x.grad.any()


def test_inference_describes_the_outputs(arch):
    """Built anew from what `inference` says, with its weights, it computes the same."""
    sae, x = build(arch), draw(20, D_IN)
    plain = sae.inference()
    node = {
        "arch": plain.arch,
        "d_sae": D_SAE,
        "apply_b_dec_to_input": sae.config.apply_b_dec_to_input,
        **plain.fields,
    }
    again = from_node(SAEConfig, node).build(D_IN, generator=torch.Generator().manual_seed(9))
    again = again.double()
    again.load_weights(plain.weights)
    assert_close(again.encode(x), sae.encode(x))
    assert_close(again(x), sae(x))


@pytest.mark.parametrize("d_sae", [0, -3])
def test_impossible_dictionary_is_refused(arch, d_sae):
    with pytest.raises(ValueError, match="d_sae"):
        config(arch, d_sae=d_sae)


def test_unknown_field_is_refused(arch):
    with pytest.raises(ValueError, match="d_seo"):
        config(arch, d_seo=4)


def test_wrong_width_is_refused(arch):
    with pytest.raises(ValueError, match=r"width 5 .* d_in 6"):
        build(arch)._as_rows(draw(3, 5))


def test_sparse_code_type(arch):
    assert isinstance(build(arch).encode_sparse(draw(3, D_IN)), SparseCode)
