"""Runs of GPT-2: identities between sites, entering, leaving and continuing, edits, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sae_kit.models.gpt2 import GPT2, GPT2Config, causal_mask
from sae_kit.models.hooks import Run

N_POS = 12
STREAM = [f"blocks.{i}.hook_resid_{part}" for i in range(3) for part in ("pre", "mid", "post")]


@pytest.fixture(scope="module")
def model(make_gpt2) -> GPT2:
    return make_gpt2()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(300, (2, N_POS), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def whole(model, tokens) -> Run:
    """Every site of one run, none of whose paths is fused."""
    return model.run(tokens, capture=model.sites(), keep_prefix=True)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# --- sites ----------------------------------------------------------------------------------------


def test_every_site_is_captured_with_its_declared_axes_in_order(model, whole):
    c = model.config
    sizes = {"batch": 2, "pos": N_POS, "key": N_POS, "head": c.n_head, "d_head": c.d_head}
    sizes |= {"d_model": c.d_model, "d_mlp": c.d_mlp, "one": 1}
    assert list(whole.acts) == list(model.sites())
    for site, axes in model.sites().items():
        assert whole.acts[site].shape == tuple(sizes[axis] for axis in axes), site


def test_capturing_changes_nothing_and_the_fused_paths_agree_with_the_written_out_ones(
    model, tokens, whole
):
    plain = model.run(tokens)
    assert plain.acts == {}
    assert plain.prefix is None
    close(plain.logits, whole.logits)
    fused = model.run(tokens, capture=STREAM)
    assert torch.equal(fused.logits, plain.logits)
    for site in STREAM:
        close(fused.acts[site], whole.acts[site])


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_sites_add_up(model, whole, layer):
    act = {
        s.removeprefix(f"blocks.{layer}."): x for s, x in whole.acts.items() if f".{layer}." in s
    }
    attn = model.blocks[layer].attn
    close(act["hook_resid_mid"], act["hook_resid_pre"] + act["hook_attn_out"])
    close(act["hook_resid_post"], act["hook_resid_mid"] + act["hook_mlp_out"])
    close(act["hook_attn_out"], act["attn.hook_result"].sum(2) + attn.b_O)
    close(act["mlp.hook_post"], F.gelu(act["mlp.hook_pre"], approximate="tanh"))
    pattern, v, z = (act[f"attn.hook_{name}"] for name in ("pattern", "v", "z"))
    close(pattern.sum(-1), torch.ones(2, 4, N_POS))
    assert not pattern.triu(1).any()
    close(z, torch.einsum("bhqk,bkhd->bqhd", pattern, v))
    for norm, stream in (("ln1", "hook_resid_pre"), ("ln2", "hook_resid_mid")):
        x = act[stream]
        scale = (x.var(-1, correction=0, keepdim=True) + model.config.eps).sqrt()
        close(act[f"{norm}.hook_scale"], scale)
        close(act[f"{norm}.hook_normalized"] * scale + x.mean(-1, keepdim=True), x)


def test_the_stream_begins_with_the_embeddings_and_ends_in_the_logits(model, tokens, whole):
    act = whole.acts
    assert torch.equal(act["hook_embed"], model.W_E[tokens])
    assert torch.equal(act["hook_pos_embed"][1], model.W_pos[:N_POS])
    close(act["blocks.0.hook_resid_pre"], act["hook_embed"] + act["hook_pos_embed"])
    for i in (0, 1):
        post, pre = act[f"blocks.{i}.hook_resid_post"], act[f"blocks.{i + 1}.hook_resid_pre"]
        assert torch.equal(post, pre)
    normal = act["ln_final.hook_normalized"] * model.ln_final.w + model.ln_final.b
    close(whole.logits, normal @ model.W_E.T)


def test_width_multiplies_heads_and_channels(model):
    width = {site: model.width(site) for site in model.sites() if "pattern" not in site}
    assert width["hook_embed"] == width["blocks.1.hook_resid_mid"] == 32
    assert width["blocks.1.attn.hook_z"] == 4 * 8
    assert width["blocks.1.attn.hook_result"] == 4 * 32
    assert width["blocks.1.mlp.hook_pre"] == 80
    assert width["ln_final.hook_scale"] == 1
    with pytest.raises(ValueError, match="no fixed width"):
        model.width("blocks.1.attn.hook_pattern")
    with pytest.raises(ValueError, match=r"no site 'blocks\.7\.hook_resid_pre'"):
        model.width("blocks.7.hook_resid_pre")


def test_earlier_positions_never_see_later_ones(model, tokens):
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 300
    before, after = model.run(tokens).logits, model.run(changed).logits
    close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amax(-1).min() > 1e-3


def test_the_mask_lets_the_last_queries_see_all_before_them():
    assert causal_mask(2, 4, torch.device("cpu")).tolist() == [
        [True, True, True, False],
        [True, True, True, True],
    ]


# --- entering, leaving, continuing ----------------------------------------------------------------


@pytest.mark.parametrize("site", STREAM)
def test_a_run_from_any_stream_site_equals_the_whole_run(model, whole, site):
    later = list(model.sites())
    later = later[later.index(site) :]
    run = model.run(start=(site, whole.acts[site]), capture=later)
    close(run.logits, whole.logits)
    for name in later:
        close(run.acts[name], whole.acts[name])


@pytest.mark.parametrize("n_before", [1, 5, N_POS - 1])
def test_a_run_behind_a_prefix_equals_the_whole_run(model, tokens, whole, n_before):
    head = model.run(tokens[:, :n_before], keep_prefix=True)
    tail = model.run(
        tokens[:, n_before:], prefix=head.prefix, keep_prefix=True, capture=model.sites()
    )
    close(torch.cat([head.logits, tail.logits], 1), whole.logits)
    for site, axes in model.sites().items():
        x = whole.acts[site]
        close(tail.acts[site], x[:, n_before:] if axes[1] == "pos" else x[:, :, n_before:])
    for layer, (keys, values) in tail.prefix.layers.items():
        close(keys, whole.prefix.layers[layer][0])
        close(values, whole.prefix.layers[layer][1])
    # Without the pattern site the fused kernel runs, with a mask of its own.
    close(model.run(tokens[:, n_before:], prefix=head.prefix).logits, tail.logits)


@pytest.mark.parametrize("n_before", [1, 6, N_POS - 1])
@pytest.mark.parametrize("site", STREAM)
def test_start_and_prefix_go_together(model, whole, site, n_before):
    x = whole.acts[site][:, n_before:]
    run = model.run(start=(site, x), prefix=whole.prefix.first(n_before))
    close(run.logits, whole.logits[:, n_before:])


def test_a_perturbed_last_position_costs_one_position_and_the_later_blocks(model, tokens, whole):
    """What the perturbation experiments do: many versions of one position, one prefix."""
    site = "blocks.1.hook_resid_pre"
    deltas = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    rows = torch.tensor([1, 1, 1])
    x = whole.acts[site][rows, -1:] + deltas[:, None]
    prefix = whole.prefix.first(N_POS - 1).rows(rows)
    cheap = model.run(start=(site, x), prefix=prefix).logits[:, 0]
    for i, delta in enumerate(deltas):

        def add(x: Tensor, delta: Tensor = delta) -> Tensor:
            return torch.cat([x[:, :-1], x[:, -1:] + delta], 1)

        close(cheap[i], model.run(tokens[1:], edit={site: add}).logits[0, -1])


@pytest.mark.parametrize("n_before", [1, 6, N_POS - 1])
@pytest.mark.parametrize("site", STREAM)
def test_positions_behind_a_forked_prefix_are_run_as_if_each_were_alone(
    model, whole, site, n_before
):
    prefix = whole.prefix.first(n_before)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    later = [name for name in model.sites() if model.sites()[name][0] == "batch"]
    later = later[later.index(site) :]
    together = model.run(start=(site, x), prefix=prefix.forked(), capture=later)
    for i in range(5):
        alone = model.run(start=(site, x[:, i : i + 1]), prefix=prefix, capture=later)
        close(together.logits[:, i : i + 1], alone.logits)
        for name in later:
            axis = model.sites()[name].index("pos")
            close(together.acts[name].narrow(axis, i, 1), alone.acts[name])
    # Without the pattern's site, as experiments run it.
    close(model.run(start=(site, x), prefix=prefix.forked()).logits, together.logits)


def test_tokens_behind_a_forked_prefix_stand_at_the_same_position(model, tokens, whole):
    prefix = whole.prefix.first(N_POS - 1)
    others = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    together = model.run(others, prefix=prefix.forked()).logits
    for i in range(5):
        changed = torch.cat([tokens[:, :-1], others[:, i : i + 1]], 1)
        close(together[:, i], model.run(changed).logits[:, -1])


def test_alternatives_need_room_for_one_position_and_are_kept_as_no_prefix(model, whole):
    x = torch.zeros(2, 40, 32)  # more than the context holds
    site = "blocks.0.hook_resid_pre"
    forked = whole.prefix.forked()
    assert model.run(start=(site, x), prefix=forked).logits.shape == (2, 40, 300)
    with pytest.raises(ValueError, match="are alternatives for one position"):
        model.run(start=(site, x), prefix=forked, keep_prefix=True)


def test_a_prefix_kept_from_a_later_start_serves_runs_from_there(model, whole):
    site = "blocks.2.hook_resid_pre"
    kept = model.run(start=(site, whole.acts[site]), keep_prefix=True).prefix
    assert set(kept.layers) == {2}
    x = whole.acts[site][:, -1:]
    close(
        model.run(start=(site, x), prefix=kept.first(N_POS - 1)).logits[:, 0], whole.logits[:, -1]
    )


@pytest.mark.parametrize("site", list(GPT2(GPT2Config(n_layer=2, d_model=12)).sites()))
def test_a_stopped_run_has_no_logits_and_computes_nothing_later(make_gpt2, tokens, site):
    model = make_gpt2()
    expected = model.run(tokens, capture=[site]).acts[site]
    reached: list[str] = []
    order = list(model.sites())
    for i, block in enumerate(model.blocks):
        block.mlp.register_forward_pre_hook(lambda *_, i=i: reached.append(f"blocks.{i}.mlp"))
        block.attn.register_forward_pre_hook(lambda *_, i=i: reached.append(f"blocks.{i}.attn"))
    model.ln_final.register_forward_pre_hook(lambda *_: reached.append("ln_final"))
    run = model.run(tokens, capture=[site], stop=site)
    assert run.logits is None
    close(run.acts[site], expected)
    first_inside = {"ln_final": "ln_final.hook_scale"}
    for i in range(3):
        first_inside[f"blocks.{i}.attn"] = f"blocks.{i}.attn.hook_q"
        first_inside[f"blocks.{i}.mlp"] = f"blocks.{i}.mlp.hook_pre"
    for module in reached:
        assert order.index(first_inside[module]) <= order.index(site)


def test_no_pattern_unless_it_is_read(model, tokens, monkeypatch):
    fused = []
    attention = F.scaled_dot_product_attention

    def counted(*args, **kwargs):
        fused.append(1)
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    model.run(tokens, capture=["blocks.1.attn.hook_z", "blocks.1.hook_attn_out"])
    assert len(fused) == 3
    model.run(tokens, capture=["blocks.1.attn.hook_pattern"])
    assert len(fused) == 3 + 2


def test_gradients_flow_from_the_logits_to_where_the_run_began(model, whole):
    x = whole.acts["blocks.2.hook_resid_mid"].clone().requires_grad_()
    model.run(start=("blocks.2.hook_resid_mid", x)).logits.square().sum().backward()
    assert x.grad.abs().amax(-1).min() > 0


# --- edits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", list(GPT2(GPT2Config(n_layer=2, d_model=12)).sites()))
def test_an_edit_takes_effect_is_captured_and_is_gone_afterwards(model, tokens, site):
    clean = model.run(tokens, capture=[site])
    run = model.run(tokens, capture=[site], edit={site: lambda x: x * 1.5 + 0.25})
    close(run.acts[site], clean.acts[site] * 1.5 + 0.25)
    assert (run.logits - clean.logits).abs().max() > 1e-3
    close(model.run(tokens, edit={site: lambda x: x}).logits, clean.logits)
    assert torch.equal(model.run(tokens, capture=[site]).logits, clean.logits)


def test_putting_back_the_captured_activation_repairs_any_damage_before_it(model, tokens, whole):
    for site in STREAM:
        repair = {"hook_embed": torch.zeros_like, site: lambda x, site=site: whole.acts[site]}
        close(model.run(tokens, edit=repair).logits, whole.logits)


def test_an_edit_at_the_entry_site_is_applied(model, whole):
    site = "blocks.1.hook_resid_mid"
    run = model.run(
        start=(site, torch.zeros(2, N_POS, 32)), edit={site: lambda x: whole.acts[site]}
    )
    close(run.logits, whole.logits)


# --- errors ---------------------------------------------------------------------------------------

X = torch.zeros(1, 4, 32)
T = torch.zeros(1, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either tokens or start"),
        ({"tokens": T, "start": (STREAM[0], X)}, "give either tokens or start"),
        ({"tokens": torch.zeros(1, 17, dtype=torch.int64)}, "17 positions.*holds 16"),
        ({"tokens": T, "capture": ["blocks.3.hook_resid_pre"]}, "capture: the model has no site"),
        ({"tokens": T, "edit": {"blocks.1.hook_q": torch.zeros_like}}, "edit: .*attn.hook_q"),
        ({"tokens": T, "stop": "logits"}, "stop: the model has no site 'logits'"),
        ({"tokens": T, "stop": STREAM[0], "capture": [STREAM[1]]}, "capture: .*never reaches"),
        ({"start": (STREAM[3], X), "edit": {STREAM[2]: torch.zeros_like}}, "edit: .*never reaches"),
        ({"start": (STREAM[3], X), "stop": "hook_embed"}, "stop: .*never reaches 'hook_embed'"),
        ({"start": ("blocks.1.hook_mlp_out", X)}, "does not cut the model"),
        ({"start": ("blocks.9.hook_resid_pre", X)}, "start: the model has no site"),
        ({"start": (STREAM[0], torch.zeros(1, 4, 31))}, "31 wide, the model 32"),
        ({"tokens": T, "edit": {STREAM[0]: lambda x: x[:, :1]}}, "returned shape"),
        ({"tokens": T, "edit": {STREAM[0]: lambda x: None}}, "returned None, not an activation"),
        ({"tokens": T, "capture": STREAM[0]}, "capture: .* is one name; give a list"),
        ({"tokens": T - 1}, "tokens: ids from -1 to -1, but the model has 0 to 299"),
        ({"tokens": T + 300}, "tokens: ids from 300 to 300"),
    ],
)
def test_what_a_run_refuses(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.run(**arguments)


def test_what_a_run_refuses_behind_a_prefix(model, tokens, whole):
    with pytest.raises(ValueError, match="17 positions"):
        model.run(tokens[:, :5], prefix=whole.prefix)
    with pytest.raises(ValueError, match="holds 2 contexts, but 1"):
        model.run(tokens[:1, :2], prefix=whole.prefix)
    site = "blocks.2.hook_resid_pre"
    late = model.run(start=(site, whole.acts[site]), keep_prefix=True).prefix
    with pytest.raises(ValueError, match="block 0 are missing"):
        model.run(tokens[:, :1], prefix=late)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_head": 5}, "d_model: 768 is not divisible by n_head 5"),
        ({"n_layer": 0}, "n_layer: 0 is not positive"),
    ],
)
def test_impossible_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        GPT2Config(**sizes)


# --- weights --------------------------------------------------------------------------------------


def test_initial_weights_depend_on_the_generator_alone():
    config = GPT2Config(n_layer=2, n_head=2, d_model=64, d_mlp=256, n_ctx=8, n_vocab=50)
    a, b, c = (GPT2(config, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.W_E, c.W_E)
    assert a.W_U is a.W_E
    # GPT-2's own spread, less by sqrt(2 n_layer) = 2 where a weight writes to the stream.
    assert a.blocks[0].mlp.W_in.std().item() == pytest.approx(0.02, rel=0.05)
    assert a.blocks[0].mlp.W_out.std().item() == pytest.approx(0.01, rel=0.05)
