"""What every registered SAE architecture must do, on every device (conftest.device).

A new one is tested by being registered.
"""

import itertools
from functools import partial

import pytest
import torch
from conftest import computes, sums_in_order
from torch.testing import assert_close

from sae_kit.config import from_node
from sae_kit.maths import widest_float
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


@pytest.fixture
def build(arch, device):
    """Builds SAEs of the architecture on the device: `build(d_in=..., seed=..., k_aux=...)`."""
    return partial(built, arch, device)


@pytest.fixture
def draw(device):
    """Draws rows on the device: `draw(20, D_IN)`, `draw(20, D_IN, seed=8)`."""
    return partial(drawn, device)


def config(arch, **fields):
    known = SAEConfig.variants()[arch].__dataclass_fields__
    small = {name: value for name, value in SMALL.items() if name in known}
    return from_node(SAEConfig, {"arch": arch, "d_sae": D_SAE, **small, **fields})


def built(arch, device, *, d_in=D_IN, d_out=None, seed=0, dtype=None, **fields):
    generator = torch.Generator().manual_seed(seed)
    sae = config(arch, **fields).build(d_in, d_out, generator=generator)
    sae = sae.to(device, dtype or widest_float(device))
    noise = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():  # a trained SAE has no zero biases, nor tied weights
        for parameter in sae.parameters():
            draw = torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
            parameter.add_(draw.to(device), alpha=0.1)
    sae.after_step()
    return sae


def drawn(device, *shape, seed=7, dtype=None):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(*shape, generator=generator, dtype=dtype or widest_float(device))
    return rows.to(device)


def first_dead(sae, n):
    """Which latents are dead, if the first n are."""
    return torch.arange(sae.d_sae, device=sae.W_dec.device) < n


def transcoder(build, **fields):
    return build(d_out=D_OUT, apply_b_dec_to_input=False, **fields)


def loss(sae, x, target, *, dead=None, at=END):
    dead = first_dead(sae, 0) if dead is None else dead
    return sae.losses(x, target, sae.forward_train(x, at), at=at, dead=dead)


@pytest.mark.parametrize("shape", [(5,), (1,), (), (2, 3)])
def test_shapes(build, draw, shape):
    sae, x = build(), draw(*shape, D_IN)
    assert sae.encode(x).shape == (*shape, D_SAE)
    assert sae.encode_sparse(x).values.shape[:-1] == shape
    assert sae.decode(sae.encode(x)).shape == x.shape
    assert sae.decode(sae.encode_sparse(x)).shape == x.shape
    assert sae(x).shape == x.shape


def test_forward_is_decode_of_encode(build, draw):
    sae, x = build(), draw(20, D_IN)
    assert_close(sae(x), sae.decode(sae.encode(x)))
    assert_close(sae(x), sae.decode(sae.encode_sparse(x)))


def test_decode_is_the_documented_algebra(build, draw):
    sae, x = build(), draw(20, D_IN)
    assert_close(sae(x), sae.encode(x) @ sae.W_dec + sae.b_dec)


def test_sparse_code_is_the_dense_code(build, draw):
    sae, x = build(), draw(20, D_IN)
    dense, sparse = sae.encode(x), sae.encode_sparse(x)
    assert_close(sparse.dense(), dense)
    assert torch.equal(sparse.l0(), (dense != 0).sum(-1))
    assert torch.equal(sparse.fired(), (dense != 0).any(0))
    assert dense.any(), "an SAE that never fires passes everything above"


def test_codes_are_not_negative(build, draw):
    assert (build().encode(draw(50, D_IN)) >= 0).all()


def test_a_row_never_sees_another(build, draw):
    sae, x = build(), draw(20, D_IN)
    alone = torch.cat([sae.encode(row[None]) for row in x])
    assert_close(sae.encode(x), alone)
    assert_close(sae.encode(x.flip(0)), alone.flip(0))


def test_gradients_equal_finite_differences(arch, build, draw, device):
    """Of the whole training loss, in every parameter and the input, on four latents."""
    computes(device)
    if arch in HELD_CONSTANT:
        pytest.skip("parts of its loss are held constant, or have no derivative; see its own test")
    sae = build(d_in=3, d_sae=4)
    if sae.W_dec.dtype != torch.float64:
        pytest.skip("float32 is too coarse for differences as small as these")
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


def test_total_is_the_sum_of_the_terms(build, draw):
    sae, x = build(), draw(20, D_IN)
    for dead in (first_dead(sae, 0), first_dead(sae, D_SAE)):
        out = loss(sae, x, draw(20, D_IN, seed=8), dead=dead)
        assert_close(out.total.detach(), torch.stack(list(out.terms.values())).sum())
        assert "mse" in out.terms


def test_loss_looks_at_the_target_not_the_input(build, draw):
    sae, x = build(), draw(20, D_IN)
    exact = sae.forward_train(x, END)
    out = sae.losses(x, exact.recon.detach(), exact, at=END, dead=first_dead(sae, 0))
    assert_close(out.mse.detach(), torch.zeros_like(out.mse))


@pytest.mark.parametrize("n_rows", [1, 20])
@pytest.mark.parametrize("share_dead", [0.0, 0.5, 1.0])
def test_every_batch_and_dead_mask_gives_finite_gradients(build, draw, n_rows, share_dead):
    sae, x = build(), draw(n_rows, D_IN)
    dead = first_dead(sae, share_dead * D_SAE)
    out = loss(sae, x, x, dead=dead)
    out.total.backward()
    assert out.total.isfinite()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_steps_keep_unit_decoder_rows_at_norm_1(build, draw):
    sae, x = build(), draw(20, D_IN)
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


@pytest.mark.slow
def test_training_lowers_the_loss(build, draw, device):
    computes(device)
    sae, x = build(), draw(64, D_IN)
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
    first = loss(sae, x, x).total.detach()
    for _ in range(100):
        optimiser.zero_grad()
        loss(sae, x, x).total.backward()
        sae.after_backward()
        optimiser.step()
        sae.after_step()
    assert loss(sae, x, x).total < 0.8 * first


def test_init_from_puts_b_dec_amid_the_data(build, draw):
    sae = build()
    offset = torch.arange(D_IN, dtype=sae.b_dec.dtype, device=sae.b_dec.device) * 10
    rows = draw(2000, D_IN) + offset
    sae.init_from(rows, rows)
    assert_close(sae.b_dec.detach(), offset, atol=0.2, rtol=0)


def test_init_from_centres_the_encoder_whoever_subtracts_b_dec(build, draw):
    """A constant added to all data changes no initial code."""
    rows = draw(2000, D_IN)
    for apply_b_dec_to_input in (True, False):
        codes = []
        for offset in (0.0, 10.0):
            sae = build(apply_b_dec_to_input=apply_b_dec_to_input)
            with torch.no_grad():
                sae.b_enc.zero_()
            sae.init_from(rows + offset, rows + offset)
            codes.append(sae.encode(rows[:50] + offset))
        assert_close(codes[0], codes[1])


def permutation(arch, device):
    """Of all latents, or of groups and of the latents inside each."""
    n_groups = SMALL["k"] if arch in GROUPED else 1
    within = drawn(device, n_groups, D_SAE // n_groups).argsort(-1)
    groups = drawn(device, n_groups, 1, seed=8).argsort(0)
    return (groups * (D_SAE // n_groups) + within).flatten()


def test_permuted_dictionary_gives_the_same_reconstruction(arch, build, draw):
    sae, other, x = build(), build(seed=5), draw(20, D_IN)
    order = permutation(arch, x.device)
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


def test_the_generator_decides_every_bit(build, draw, device):
    if not sums_in_order(device):
        pytest.skip("the device adds in no fixed order")

    def trained(seed):
        sae = build(seed=seed, dtype=torch.float32)
        x = draw(64, D_IN, dtype=torch.float32)
        optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
        for step in range(5):
            optimiser.zero_grad()
            loss(sae, x, x, at=Moment(step, 5), dead=first_dead(sae, 6)).total.backward()
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
def test_folding_equals_scaling_and_unscaling(build, draw, apply_b_dec_to_input):
    sae, x = build(apply_b_dec_to_input=apply_b_dec_to_input), draw(20, D_IN)
    scale = 3.7
    code, recon = sae.encode(x * scale), sae(x * scale) / scale
    sae.fold_scales(scale, scale)
    assert_close(sae.encode(x), code)
    assert_close(sae(x), recon)


@pytest.mark.parametrize("skip", [True, False])
def test_transcoder_reads_one_width_and_writes_another(build, draw, skip):
    sae, x = transcoder(build, skip=skip), draw(20, D_IN)
    target = draw(20, D_OUT, seed=8)
    expected = sae.encode(x) @ sae.W_dec + sae.b_dec + (x @ sae.W_skip.T if skip else 0)
    assert_close(sae(x), expected)
    out = loss(sae, x, target, dead=first_dead(sae, 4))
    out.total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in sae.parameters())
    code, recon = sae.encode(x * 3.0), sae(x * 3.0) / 0.5
    sae.fold_scales(3.0, 0.5)
    assert_close(sae.encode(x), code)
    assert_close(sae(x), recon)


def test_what_does_not_fit_a_transcoder_is_refused(build):
    with pytest.raises(ValueError, match="apply_b_dec_to_input: true does not fit a transcoder"):
        build(d_out=D_OUT)
    with pytest.raises(ValueError, match="skip: true"):
        build(skip=True)


def test_state_dict_round_trip_is_bit_exact(build, draw):
    sae, other = build(), build(seed=3)
    other.load_state_dict(sae.state_dict())
    x = draw(20, D_IN)
    assert torch.equal(other(x), sae(x))


def test_input_gradient_passes_through_the_sae(build, draw):
    sae, x = build(), draw(4, D_IN).requires_grad_()
    sae(x).sum().backward()
    assert x.grad.any()


def test_inference_describes_the_outputs(arch, build, draw):
    """Built anew from what `inference` says, with its weights, it computes the same."""
    sae, x = build(), draw(20, D_IN)
    plain = sae.inference()
    node = {
        "arch": plain.arch,
        "d_sae": D_SAE,
        "apply_b_dec_to_input": sae.config.apply_b_dec_to_input,
        **plain.fields,
    }
    again = from_node(SAEConfig, node).build(D_IN, generator=torch.Generator().manual_seed(9))
    again = again.to(x)
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


def test_wrong_width_is_refused(build, draw):
    with pytest.raises(ValueError, match=r"width 5 .* d_in 6"):
        build()._as_rows(draw(3, 5))


def test_sparse_code_type(build, draw):
    assert isinstance(build().encode_sparse(draw(3, D_IN)), SparseCode)
