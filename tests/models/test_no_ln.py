"""Removing LayerNorm: constants in the place of scales, the linear model that is left, folding."""

from dataclasses import replace

import pytest
import torch
from conftest import SMALL, random_gpt2

from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.no_ln import (
    EOT,
    FIRST,
    Removal,
    Scales,
    folded_copy,
    logit_parts,
    norm_names,
    removable,
)

EOT_ID = 7
N_POS = 10
ALL = frozenset(removable(3))


@pytest.fixture
def model():
    return random_gpt2().double()


@pytest.fixture
def tokens():
    tokens = torch.randint(300, (4, N_POS), generator=torch.Generator().manual_seed(5))
    tokens[1, 4] = EOT_ID
    return tokens


@pytest.fixture
def scales(model, tokens):
    return Scales.measure(model, tokens, eot_id=EOT_ID)


def run(model, tokens, scales, removed):
    removal = Removal(scales, frozenset(removed), EOT_ID)
    return model.run(tokens, edit=removal.edits(model, tokens)).logits


def own_scale(x: torch.Tensor) -> torch.Tensor:
    return (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()


# --- scales ---------------------------------------------------------------------------------------


def test_scales_are_means_over_ordinary_positions_and_over_the_first(model, tokens, scales):
    sites = ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.2.hook_resid_post"]
    acts = model.run(tokens, capture=sites).acts
    ordinary = torch.ones(4, N_POS, dtype=torch.bool)
    ordinary[:, 0] = False
    ordinary[1, 4] = False
    for site, norm in zip(sites, ("blocks.1.ln1", "blocks.1.ln2", "ln_final"), strict=True):
        scale = own_scale(acts[site])[..., 0]
        assert scales.ordinary[norm] == pytest.approx(scale[ordinary].mean().item())
        assert scales.first[norm] == pytest.approx(scale[:, 0].mean().item())


def test_contexts_without_an_ordinary_position_have_no_scales(model):
    with pytest.raises(ValueError, match="no ordinary position"):
        Scales.measure(model, torch.full((3, 4), EOT_ID), eot_id=EOT_ID)


def test_a_scale_must_be_positive():
    with pytest.raises(ValueError, match="ordinary: the scale of ln_final is 0"):
        Scales({"ln_final": 0.0}, {"ln_final": 1.0})


# --- removal --------------------------------------------------------------------------------------


def test_with_the_true_scales_nothing_changes(model, tokens):
    """METHODS 5(f): fake LayerNorm with s the true scale is LayerNorm. One token per position, so
    that every position has one true scale."""
    for position in (0, 5):
        one = tokens[:1, : position + 1]
        sites = [f"{name}.hook_scale" for name in norm_names(3)]
        acts = model.run(one, capture=sites).acts
        true = {name: acts[f"{name}.hook_scale"][0, -1].item() for name in norm_names(3)}
        scales = Scales(true, true)
        norm = "ln_final" if position else "blocks.0.ln2"
        # What is removed before the position is not its own: only a last norm can be exact there.
        logits = run(model, one, scales, {norm, FIRST})
        torch.testing.assert_close(logits[:, -1], model.run(one).logits[:, -1])


def test_the_first_position_alone_is_exact_with_all_its_own_scales(model, tokens):
    one = tokens[:1, :1]
    acts = model.run(one, capture=[f"{name}.hook_scale" for name in norm_names(3)]).acts
    true = {name: acts[f"{name}.hook_scale"].item() for name in norm_names(3)}
    other = dict.fromkeys(true, 123.0)
    logits = run(model, one, Scales(other, true), ALL - {EOT, FIRST})
    torch.testing.assert_close(logits, model.run(one).logits)


def test_nothing_removed_is_the_model_itself(model, tokens, scales):
    assert Removal(scales, frozenset({EOT, FIRST}), EOT_ID).edits(model, tokens) == {}


@pytest.mark.parametrize("part", ["qk", "v"])
def test_queries_and_keys_are_removed_apart_from_values(model, tokens, scales, part):
    """The half that is not removed sees LayerNorm, the other the constant."""
    site = "blocks.1.hook_resid_pre"
    removed = {"blocks.1.ln1.qk", FIRST, EOT} | ({"blocks.1.ln1.v"} if part == "v" else set())
    heads = [f"blocks.1.attn.hook_{one}" for one in "qkv"]
    plain = model.run(tokens, capture=[site, *heads]).acts
    removal = Removal(scales, frozenset(removed), EOT_ID)
    got = model.run(tokens, edit=removal.edits(model, tokens), capture=heads).acts
    block = model.blocks[1]
    x = plain[site] - plain[site].mean(-1, keepdim=True)
    constant = x / scales.ordinary["blocks.1.ln1"] * block.ln1.w + block.ln1.b
    expected = (constant @ block.attn.W_qkv + block.attn.b_qkv).view(4, N_POS, 3, 4, 8)
    for i, name in enumerate(heads):
        is_constant = name.endswith(("_q", "_k")) or part == "v"
        torch.testing.assert_close(got[name], expected[:, :, i] if is_constant else plain[name])


def test_special_scales_are_those_of_positions_not_channels(model, tokens, scales):
    """Position 0 has its own constant until that is removed; so have an end-of-text token's values,
    and nothing else of it."""
    removed = {"blocks.0.ln1.qk", "blocks.0.ln1.v"}
    heads = [f"blocks.0.attn.hook_{one}" for one in "qkv"]

    def acts(*more: str) -> dict[str, torch.Tensor]:
        removal = Removal(scales, frozenset({*removed, *more}), EOT_ID)
        return model.run(tokens, edit=removal.edits(model, tokens), capture=heads).acts

    special, first_only, none = acts(), acts(EOT), acts(EOT, FIRST)
    for name in heads:
        differs = ((special[name] - none[name]).abs() > 1e-9).flatten(2).any(-1)
        expected = torch.zeros(4, N_POS, dtype=torch.bool)
        expected[:, 0] = True
        expected[1, 4] = name.endswith("_v")
        assert torch.equal(differs, expected), name
        assert torch.equal(first_only[name][:, 1:], none[name][:, 1:])


def test_a_run_without_layernorm_is_affine_in_the_stream(model, tokens, scales):
    """METHODS 5(f): f(a x + (1 - a) y) = a f(x) + (1 - a) f(y), of last norm and unembedding."""
    linear = Removal(scales, ALL, EOT_ID).linear_copy(model)
    site = "blocks.2.hook_resid_post"
    x, y = (torch.randn(1, 3, 32, dtype=torch.float64) for _ in range(2))

    def f(z: torch.Tensor, of: GPT2 = linear) -> torch.Tensor:
        return of.run(start=(site, z)).logits

    torch.testing.assert_close(f(0.3 * x + 0.7 * y), 0.3 * f(x) + 0.7 * f(y))
    assert (f(0.3 * x + 0.7 * y, model) - 0.3 * f(x, model) - 0.7 * f(y, model)).abs().max() > 0.01


def test_gradients_flow_through_scales_that_are_not_removed(model, tokens, scales):
    """Those of values whose queries and keys are removed, found by finite differences."""
    removal = Removal(scales, frozenset({"blocks.0.ln1.qk"}), EOT_ID)
    weight = model.W_E.requires_grad_()
    row = int(tokens[0, 3])

    def loss() -> torch.Tensor:
        return model.run(tokens, edit=removal.edits(model, tokens)).logits.square().mean()

    (gradient,) = torch.autograd.grad(loss(), weight)
    step = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight[row] += 1e-5 * step
        above = loss()
        weight[row] -= 2e-5 * step
        below = loss()
    assert (gradient[row] @ step).item() == pytest.approx(((above - below) / 2e-5).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"blocks.3.ln2"}, "are no LayerNorms of 3 blocks"),
        ({"blocks.0.ln1.v"}, "remove that first"),
    ],
)
def test_removals_that_make_no_sense_are_refused(model, tokens, scales, removed, message):
    with pytest.raises(ValueError, match=message):
        Removal(scales, frozenset(removed), EOT_ID).edits(model, tokens)


# --- the model that is left -----------------------------------------------------------------------


def test_the_linear_copy_computes_what_the_removals_do(model, tokens, scales):
    removal = Removal(scales, ALL, EOT_ID)
    assert removal.is_complete
    linear = removal.linear_copy(model)
    assert linear.config == replace(SMALL, norm="linear")
    torch.testing.assert_close(linear.run(tokens).logits, run(model, tokens, scales, ALL))


def test_a_model_that_still_has_norms_is_not_made_linear(model, scales):
    with pytest.raises(ValueError, match="2 of the norms and special scales are still there"):
        Removal(scales, ALL - {FIRST, "ln_final"}, EOT_ID).linear_copy(model)
    with pytest.raises(ValueError, match="has LayerNorm, whose scale differs"):
        folded_copy(model)


@pytest.mark.parametrize("tied", [True, False])
def test_folding_changes_nothing(tokens, tied):
    linear = random_gpt2(replace(SMALL, norm="linear", tied=tied)).double()
    linear.ln_final.w[3] = 0.0  # a channel without gain
    folded = folded_copy(linear)
    for name in norm_names(3)[:-1]:
        norm = folded.get_submodule(name)
        assert (norm.w == 1).all()
        assert (norm.b == 0).all()
    torch.testing.assert_close(folded.run(tokens).logits, linear.run(tokens).logits)
    W = folded.blocks[1].mlp.W_in
    torch.testing.assert_close(torch.ones(32, dtype=W.dtype) @ W, torch.zeros(80, dtype=W.dtype))


def test_parts_of_the_logits_add_up(tokens):
    linear = random_gpt2(replace(SMALL, norm="linear")).double()
    parts = logit_parts(linear, tokens)
    assert len(parts) == 2 + 2 * 3 + 1
    total = torch.stack(list(parts.values())).sum(0)
    torch.testing.assert_close(total, linear.run(tokens).logits, rtol=0, atol=1e-10)


def test_parts_do_not_add_up_behind_layernorm_and_are_refused(model, tokens):
    with pytest.raises(ValueError, match="parts do not add up"):
        logit_parts(model, tokens)


def test_there_is_nothing_to_measure_without_layernorm(tokens):
    with pytest.raises(ValueError, match="there is no LayerNorm"):
        Scales.measure(random_gpt2(replace(SMALL, norm="linear")), tokens, eot_id=EOT_ID)


def test_what_can_be_removed_of_gpt2_small_are_the_papers_39_events():
    assert len(removable(GPT2Config().n_layer)) == 12 + 2 * 12 + 1 + 2 == 39
