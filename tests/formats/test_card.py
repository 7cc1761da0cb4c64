import pytest
import torch
import yaml

from sae_kit.formats import inspect_sae, save_sae
from sae_kit.formats.card import model_card
from sae_kit.sae.topk import TopKConfig

SITE = "blocks.3.hook_resid_pre"


@pytest.fixture
def info(tmp_path):
    sae = TopKConfig(d_sae=24, k=4).build(6, generator=torch.Generator().manual_seed(0))
    metadata = {
        "hook_name": SITE,
        "model_name": "gpt2-small",
        "context_size": 128,
        "prepend_bos": True,
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
        "training": {"trainer": {"lr": 0.0003, "n_tokens": 1000}},
    }
    save_sae(sae, tmp_path / SITE, metadata=metadata)
    return inspect_sae(tmp_path / SITE)


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_what_the_card_says(info):
    rows = [{"site": SITE, "l0": 4, "fvu": 0.123456, "kl": 1.0}, {"site": "other", "l0": 1}]
    card = model_card("owner/name", {SITE: info}, {SITE: "topk"}, rows)
    assert front(card) == {
        "library_name": "sae_kit",
        "tags": ["sparse-autoencoder", "mechanistic-interpretability", "saelens"],
        "base_model": "openai-community/gpt2",
    }
    assert "# name\n" in card
    assert "1 sparse autoencoder of gpt2-small" in card
    assert "| site | architecture | d_in | d_sae | L0 | FVU |\n" in card
    assert f"| `{SITE}` | topk, k = 4 | 6 | 24 | 4 | 0.1235 |\n" in card
    assert f'load_sae("owner/name/{SITE}")' in card
    assert f'SAE.from_pretrained("owner/name", "{SITE}")' in card
    assert "- tokens in a context: 128\n" in card
    assert "- contexts begin with the end-of-text token: yes\n" in card
    assert "- residual stream is mean-centred: yes\n" in card
    settings = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(settings) == {"trainer": {"lr": 0.0003, "n_tokens": 1000}}


def test_what_is_not_known_is_left_out(info):
    bare = type(info)(**{**vars(info), "metadata": {}, "site": None})
    card = model_card("owner/name", {"x": bare}, {"x": "topk"})
    assert "base_model" not in front(card)
    assert "L0" not in card
    assert "| `x` | topk, k = 4 | 6 | 24 |\n" in card
    assert not any(word in card for word in ("tokens", "end-of-text", "centred", "## Training"))
    assert "Settings" not in card


@pytest.mark.parametrize(
    ("model", "base"), [("demo", None), ("owner/model", "owner/model"), ("/a/b", None)]
)
def test_only_ids_of_the_hub_are_base_models(info, model, base):
    other = type(info)(**{**vars(info), "metadata": {"model_name": model}})
    card = model_card("owner/name", {SITE: other}, {SITE: "topk"})
    assert front(card).get("base_model") == base


@pytest.mark.parametrize("word", ["topk_transcoder", "groupmax", "groupmax_skip_transcoder"])
def test_no_line_for_what_saelens_does_not_open(info, word):
    card = model_card("owner/name", {SITE: info}, {SITE: word})
    assert "sae_lens" not in card
    assert "load_sae(" in card
