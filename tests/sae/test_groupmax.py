import pytest
import torch
from torch.testing import assert_close

from sae_kit.sae import Moment, SparseCode
from sae_kit.sae.groupmax import GroupMaxConfig

START = Moment(0, 1)


def build(d_in=8, *, dtype=torch.float64, seed=0, **fields):
    config = GroupMaxConfig(**{"d_sae": 24, "k": 3, **fields})
    return config.build(d_in, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_code_is_the_relu_of_the_largest_pre_activation_of_each_run_of_latents():
    sae = build()
    with torch.no_grad():
        sae.b_enc.copy_(draw(24, seed=1) - 2)  # some groups have none above 0
        sae.b_dec.copy_(draw(8, seed=2))
    x = draw(50, 8, seed=3)
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    expected = torch.zeros_like(pre)
    for first in (0, 8, 16):
        group = pre[:, first : first + 8]
        largest = group.max(-1, keepdim=True).values
        expected[:, first : first + 8] = torch.where(group == largest, group, 0.0).relu()
    assert_close(sae.encode(x), expected)
    l0 = sae.encode_sparse(x).l0()
    assert l0.max() == 3
    assert l0.min() < 3


def test_code_stays_sparse_in_training():
    code = build().forward_train(draw(5, 8), START).code
    assert isinstance(code, SparseCode)
    assert code.values.shape == (5, 3)
    assert torch.equal(code.indices // 8, torch.arange(3).expand(5, 3))


def test_one_group_is_top_1_and_groups_of_one_are_relu():
    x = draw(50, 8, seed=3)
    for k in (1, 24):
        sae = build(k=k)
        pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        kept = pre >= pre.topk(k).values[:, -1:]
        assert_close(sae.encode(x), torch.where(kept, pre, 0.0).relu())


def test_gradient_reaches_the_largest_of_each_group_alone():
    """Against the gradient of the plain formula."""
    sae, x, weight = build(), draw(20, 8, seed=3), draw(20, 24, seed=4)
    (sae.encode(x) * weight).sum().backward()
    ours = sae.encoder_rows.grad.clone()
    sae.encoder_rows.grad = None
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    best = pre.view(20, 3, 8).argmax(-1) + torch.tensor([0, 8, 16])
    mask = torch.zeros_like(pre).scatter(1, best, 1.0)
    (pre.relu() * mask * weight).sum().backward()
    assert_close(ours, sae.encoder_rows.grad)


def test_initial_encoder_gives_unit_outputs_for_unit_inputs():
    sae = GroupMaxConfig(d_sae=512, k=8).build(64, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.normalize(draw(500, 64, seed=1, dtype=torch.float32))
    assert_close(sae(x).norm(dim=-1).mean(), torch.tensor(1.0), atol=0.05, rtol=0)
    cosine = torch.nn.functional.cosine_similarity(sae.W_enc.T, sae.W_dec)
    assert_close(cosine, torch.ones(512))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "^k: 0"),
        ({"k": 48}, "^k: 48 does not make groups of equal size; give a divisor of d_sae=24"),
        ({"k": 5}, "^k: 5 does not make groups"),
        ({"k_aux": 0}, "^k_aux: 0"),
        ({"d_sae": 0, "k": 0}, "^d_sae: 0"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        GroupMaxConfig(**{"d_sae": 24, "k": 3, **fields})
