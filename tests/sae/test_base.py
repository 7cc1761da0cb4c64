import pytest
import torch
from torch.testing import assert_close

from sae_kit.config import from_node
from sae_kit.sae import Moment, SAEConfig
from sae_kit.sae.relu import ReLUConfig


def build(d_in=6, **fields):
    return ReLUConfig(d_sae=10, **fields).build(d_in, generator=torch.Generator().manual_seed(0))


def test_the_family_finds_its_members_without_a_list():
    assert {"relu", "topk"} <= SAEConfig.variants().keys()
    assert from_node(SAEConfig, {"arch": "relu", "d_sae": 10}) == ReLUConfig(d_sae=10)


def test_weights_read_the_documented_shapes():
    sae = build()
    assert sae.W_enc.shape == (6, 10)
    assert sae.W_dec.shape == (10, 6)
    assert sae.W_enc.T.is_contiguous()
    assert sae.W_dec.is_contiguous()


def test_encoder_starts_as_the_transposed_decoder():
    sae = build()
    assert torch.equal(sae.W_enc, sae.W_dec.T)


def test_load_weights_is_the_inverse_of_weights():
    source, sae = build(), build()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    sae.load_weights(source.weights())
    for name, tensor in source.weights().items():
        assert torch.equal(sae.weights()[name], tensor)
    assert torch.equal(sae.encoder_rows, source.encoder_rows)


def test_load_weights_names_what_is_wrong():
    sae = build()
    with pytest.raises(ValueError, match=r"b_enc: got shape \(3,\); give \(10,\)"):
        sae.load_weights({**sae.weights(), "b_enc": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"give .*W_enc"):
        sae.load_weights({"W_dec": sae.W_dec})


@pytest.mark.parametrize(
    ("step", "share", "expected"),
    [(0, 0.5, 0.0), (25, 0.5, 0.5), (50, 0.5, 1.0), (99, 0.5, 1.0), (0, 0.0, 1.0)],
)
def test_a_rise_is_linear_over_its_share_of_the_run(step, share, expected):
    assert Moment(step, 100).rise(share) == expected


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_fold_scales_refuses(scale):
    with pytest.raises(ValueError, match="give a positive, finite number"):
        build().fold_scales(scale, scale)


def test_an_autoencoder_has_one_scale():
    with pytest.raises(ValueError, match=r"scale_out: 3\.0"):
        build().fold_scales(2.0, 3.0)


def test_wrong_width_is_named():
    with pytest.raises(ValueError, match="width 5 does not fit an SAE of d_in 6"):
        build()._as_rows(torch.zeros(2, 5))


def test_no_width():
    with pytest.raises(ValueError, match="d_in: 0"):
        build(d_in=0)


def test_pre_bias_is_the_configs_choice():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    with_bias, without = build(), build(apply_b_dec_to_input=False)
    with torch.no_grad():
        for sae in (with_bias, without):
            sae.b_dec.copy_(torch.arange(6.0))
    assert_close(with_bias.encode(x), without.encode(x - torch.arange(6.0)))


def test_weights_that_are_not_drawn_are_there_to_be_loaded():
    drawn, empty = build(), ReLUConfig(d_sae=10).build(6, generator=None)
    assert not any(tensor.any() for tensor in empty.weights().values())
    empty.load_weights(drawn.weights())
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(empty(x), drawn(x))
