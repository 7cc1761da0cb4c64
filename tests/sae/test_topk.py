import pytest
import torch
from torch.testing import assert_close

from sae_kit.sae import Moment, SparseCode
from sae_kit.sae.topk import TopKConfig

START = Moment(0, 1)


def build(d_in=8, *, dtype=torch.float64, seed=0, **fields):
    config = TopKConfig(**{"d_sae": 24, "k": 3, **fields})
    return config.build(d_in, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_code_is_the_relu_of_the_k_largest_pre_activations():
    sae = build()
    with torch.no_grad():
        sae.b_enc.copy_(draw(24, seed=1) - 1.5)  # some rows have fewer than 3 above 0
        sae.b_dec.copy_(draw(8, seed=2))
    x = draw(50, 8, seed=3)
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    kept = pre >= pre.topk(3).values[:, -1:]
    expected = torch.where(kept, pre, 0.0).relu()
    assert_close(sae.encode(x), expected)
    l0 = sae.encode_sparse(x).l0()
    assert l0.max() == 3
    assert l0.min() < 3


def test_code_stays_sparse_in_training():
    code = build().forward_train(draw(5, 8), START).code
    assert isinstance(code, SparseCode)
    assert code.values.shape == (5, 3)


def test_initial_encoder_gives_unit_outputs_for_unit_inputs():
    sae = TopKConfig(d_sae=512, k=8).build(64, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.normalize(draw(500, 64, seed=1, dtype=torch.float32))
    assert_close(sae(x).norm(dim=-1).mean(), torch.tensor(1.0), atol=0.05, rtol=0)
    cosine = torch.nn.functional.cosine_similarity(sae.W_enc.T, sae.W_dec)
    assert_close(cosine, torch.ones(512))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "^k: 0"),
        ({"k": 25}, "^k: 25 does not fit; give 1 to d_sae=24"),
        ({"aux_coefficient": -0.1}, "^aux_coefficient: -0.1"),
        ({"k_aux": 0}, "^k_aux: 0"),
        ({"d_sae": 0, "k": 0}, "^d_sae: 0"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        TopKConfig(**{"d_sae": 24, "k": 3, **fields})
