"""The same numbers as `transformers`' GPT2LMHeadModel, on random weights made on the spot."""

import functools
import inspect

import pytest
import torch
from torch import Tensor

from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.hooks import Run
from sae_kit.models.pretrained import load_model, save_model

transformers = pytest.importorskip("transformers")

CONFIGS = {
    "small": GPT2Config(n_layer=3, n_head=4, d_model=32, d_mlp=80, n_ctx=24, n_vocab=300),
    "untied": GPT2Config(
        n_layer=2, n_head=2, d_model=24, d_mlp=96, n_ctx=24, n_vocab=300, tied=False, eps=1e-3
    ),
    "without LayerNorm": GPT2Config(
        n_layer=2, n_head=2, d_model=24, d_mlp=96, n_ctx=24, n_vocab=300, norm="linear"
    ),
    # GPT-2 small's width, heads and vocabulary, with fewer blocks.
    "gpt2-wide": GPT2Config(n_layer=2, n_ctx=64),
}
N_POS = 20


@pytest.fixture(scope="module", params=list(CONFIGS))
def pair(request, make_gpt2, tiny_tokenizer, tmp_path_factory):
    """One of our models, and the one that transformers reads from what we saved."""
    ours = make_gpt2(CONFIGS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    save_model(ours, tiny_tokenizer, folder)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager")
    return ours, theirs.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(300, (2, N_POS), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def ours(pair, tokens) -> Run:
    return pair[0].run(tokens, capture=pair[0].sites())


@pytest.fixture(scope="module")
def theirs(pair, tokens):
    """Their output, and what their modules received and returned, by module name."""
    model, inputs, outputs = pair[1], {}, {}

    def keep(name, module, args, out):
        inputs[name] = args[0] if args else None
        outputs[name] = out[0] if isinstance(out, tuple) else out

    handles = [
        module.register_forward_hook(functools.partial(keep, name))
        for name, module in model.named_modules()
    ]
    out = model(tokens, output_hidden_states=True, output_attentions=True)
    for handle in handles:
        handle.remove()
    return out, inputs, outputs


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_logits(ours, theirs):
    close(ours.logits, theirs[0].logits)
    assert ours.logits.std() > 0.1  # or agreement would say little


def test_the_residual_stream(pair, ours, theirs):
    out, inputs, _ = theirs
    n_layer = pair[0].config.n_layer
    for i in range(n_layer):
        close(ours.acts[f"blocks.{i}.hook_resid_pre"], out.hidden_states[i])
        close(ours.acts[f"blocks.{i}.hook_resid_mid"], inputs[f"transformer.h.{i}.ln_2"])
    # Their last hidden state lies behind the final LayerNorm; the stream itself enters it.
    close(ours.acts[f"blocks.{n_layer - 1}.hook_resid_post"], inputs["transformer.ln_f"])


def test_the_embeddings(ours, theirs):
    _, _, outputs = theirs
    close(ours.acts["hook_embed"], outputs["transformer.wte"])
    close(ours.acts["hook_pos_embed"][:1], outputs["transformer.wpe"].reshape(1, N_POS, -1))


def test_attention(pair, ours, theirs):
    out, inputs, outputs = theirs
    for i in range(pair[0].config.n_layer):
        act = {name: ours.acts[f"blocks.{i}.attn.hook_{name}"] for name in ("q", "k", "v", "z")}
        qkv = torch.cat([act[name].flatten(2) for name in ("q", "k", "v")], -1)
        close(qkv, outputs[f"transformer.h.{i}.attn.c_attn"])
        close(ours.acts[f"blocks.{i}.attn.hook_pattern"], out.attentions[i])
        close(act["z"].flatten(2), inputs[f"transformer.h.{i}.attn.c_proj"])
        close(ours.acts[f"blocks.{i}.hook_attn_out"], outputs[f"transformer.h.{i}.attn"])


def test_mlp(pair, ours, theirs):
    _, inputs, outputs = theirs
    for i in range(pair[0].config.n_layer):
        close(ours.acts[f"blocks.{i}.mlp.hook_pre"], outputs[f"transformer.h.{i}.mlp.c_fc"])
        close(ours.acts[f"blocks.{i}.mlp.hook_post"], inputs[f"transformer.h.{i}.mlp.c_proj"])
        close(ours.acts[f"blocks.{i}.hook_mlp_out"], outputs[f"transformer.h.{i}.mlp"])


def test_layer_norms(pair, ours, theirs):
    """Ours lie before gain and bias, theirs behind."""
    _, _, outputs = theirs
    model: GPT2 = pair[0]
    norms = {"ln_final": ("transformer.ln_f", model.ln_final)}
    for i, block in enumerate(model.blocks):
        norms[f"blocks.{i}.ln1"] = (f"transformer.h.{i}.ln_1", block.ln1)
        norms[f"blocks.{i}.ln2"] = (f"transformer.h.{i}.ln_2", block.ln2)
    for name, (their_name, norm) in norms.items():
        close(ours.acts[f"{name}.hook_normalized"] * norm.w + norm.b, outputs[their_name])


@pytest.mark.parametrize("n_before", [1, 7, N_POS - 1])
def test_our_prefix_is_their_cache(pair, tokens, n_before):
    model, reference = pair
    head = reference(tokens[:, :n_before], use_cache=True)
    prefix = model.run(tokens[:, :n_before], keep_prefix=True).prefix
    for i, (keys, values) in prefix.layers.items():
        close(keys.transpose(1, 2), head.past_key_values.layers[i].keys)
        close(values.transpose(1, 2), head.past_key_values.layers[i].values)
    # Renamed in transformers 5.24.
    known = inspect.signature(reference.forward).parameters
    name = "cache" if "cache" in known else "past_key_values"
    tail = reference(tokens[:, n_before:], **{name: head.past_key_values})
    close(model.run(tokens[:, n_before:], prefix=prefix).logits, tail.logits)


def test_greedy_continuations_agree(pair, tokens):
    model, reference = pair
    expected = reference.generate(
        tokens[:, :4], max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    run = model.run(tokens[:, :4], keep_prefix=True)
    said = [run.logits[:, -1].argmax(-1, keepdim=True)]
    for _ in range(7):
        run = model.run(said[-1], prefix=run.prefix, keep_prefix=True)
        said.append(run.logits[:, -1].argmax(-1, keepdim=True))
    assert torch.cat([tokens[:, :4], *said], 1).tolist() == expected.tolist()


@pytest.mark.parametrize("safe", [True, False])
def test_we_read_what_they_save(pair, tiny_tokenizer, tokens, tmp_path, safe):
    model, reference = pair
    reference.save_pretrained(tmp_path, max_shard_size="1MB")
    if not safe:  # as models were saved before safetensors: bare names, causal masks, pickled
        for file in tmp_path.glob("*.safetensors*"):
            file.unlink()
        old = dict(reference.transformer.state_dict())
        for i in range(model.config.n_layer):
            old[f"h.{i}.attn.bias"] = torch.ones(1, 1, 24, 24, dtype=torch.uint8).tril()
        if not model.config.tied:
            old["lm_head.weight"] = reference.lm_head.weight
        torch.save(old, tmp_path / "pytorch_model.bin")
    tiny_tokenizer.save(tmp_path)
    lm = load_model(str(tmp_path))
    assert lm.model.config == model.config
    assert torch.equal(lm.model.run(tokens).logits, model.run(tokens).logits)


def test_their_tokenizer_reads_ours(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save(tmp_path)
    text = "the cat sat on 17 logs, né?\n\n  <|endoftext|>the dog"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text)["input_ids"] == tiny_tokenizer.encode(text)
    assert theirs.eos_token_id == tiny_tokenizer.eot_id
