"""Golden activations of a trained GPT-2-architecture model that no one here made.

The fixture is bbycroft/llm-viz's sorting model (minGPT names, `nn.Linear` layout, own unembedding).
It lies beside the repository, not in it, so that the test is skipped where it is not.
"""

import base64
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.hf_layout import hf_key
from sae_kit.models.hooks import Run

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
MODEL, PARTIALS = (FIXTURES / f"gpt-nano-sort-{name}.json" for name in ("model", "t0-partials"))

pytestmark = pytest.mark.skipif(not MODEL.is_file(), reason=f"no fixture at {MODEL}")


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of one fixture file: base64 of little-endian float32."""
    return {
        name: torch.frombuffer(
            bytearray(base64.b64decode(entry["data"])), dtype=torch.float32
        ).reshape(entry["shape"])
        for name, entry in json.loads(path.read_text()).items()
        if name != "config"
    }


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return read(PARTIALS)


@pytest.fixture(scope="module")
def model() -> GPT2:
    weights = read(MODEL)
    config = GPT2Config(n_layer=3, n_head=3, d_model=48, d_mlp=192, n_ctx=11, n_vocab=3, tied=False)
    model = GPT2(config).requires_grad_(False)
    for name, p in model.named_parameters():
        stored = weights[hf_key(name)]
        linear = any(part in hf_key(name) for part in ("c_attn", "c_proj", "c_fc"))
        p.copy_(stored.T if linear and stored.ndim == 2 else stored)
    return model


@pytest.fixture(scope="module")
def run(model, golden) -> Run:
    return model.run(golden["idx"].long(), capture=model.sites())


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("site", "name"),
    [
        ("hook_embed", "tok_emb"),
        ("blocks.0.hook_resid_pre", "x"),
        ("blocks.0.hook_attn_out", "yProj"),
        ("blocks.0.hook_resid_mid", "attnResid"),
        ("blocks.0.mlp.hook_pre", "fc"),
        ("blocks.0.mlp.hook_post", "gelu"),
        ("blocks.0.hook_mlp_out", "mlp"),
        ("blocks.0.hook_resid_post", "mlpResid"),
        ("blocks.0.hook_resid_post", "block0"),
        ("blocks.1.hook_resid_post", "block1"),
        ("blocks.2.hook_resid_post", "block2"),
    ],
)
def test_stream_and_mlp(run, golden, site, name):
    close(run.acts[site], golden[name])


def test_position_embeddings(run, golden):
    close(run.acts["hook_pos_embed"], golden["pos_emb"].expand(3, -1, -1))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_queries_keys_values(run, golden, name):
    close(run.acts[f"blocks.0.attn.hook_{name}"].transpose(1, 2), golden[name])


def test_attention(run, golden):
    close(run.acts["blocks.0.attn.hook_pattern"], golden["attSm"])
    close(run.acts["blocks.0.attn.hook_z"].flatten(2), golden["y"])


@pytest.mark.parametrize(
    ("norm", "name"), [("blocks.0.ln1", "ln1"), ("blocks.0.ln2", "ln2"), ("ln_final", "ln_f")]
)
def test_layer_norms(model, run, golden, norm, name):
    module = model.get_submodule(norm)
    close(run.acts[f"{norm}.hook_normalized"] * module.w + module.b, golden[name])


def test_logits(run, golden):
    close(run.logits, golden["lm_head"])


def test_it_sorts(model):
    """What it was trained for: after six letters come the same six, sorted."""
    letters = torch.randint(3, (64, 6), generator=torch.Generator().manual_seed(0))
    ids = letters
    for _ in range(5):
        ids = torch.cat([ids, model.run(ids).logits[:, -1:].argmax(-1)], 1)
    said = torch.cat([ids[:, 6:], model.run(ids).logits[:, -1:].argmax(-1)], 1)
    right = (said == letters.sort(-1).values).all(-1).float().mean()
    assert right > 0.9
