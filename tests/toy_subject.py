"""A subject that evaluations can be run on in a second: a small random GPT-2, SAEs, some text."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from conftest import random_gpt2

from sae_kit.data.synthetic import synthetic_text
from sae_kit.data.text import TextConfig
from sae_kit.evals.base import Subject
from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.hooks import Site
from sae_kit.models.pretrained import LanguageModel
from sae_kit.models.tokenizer import Tokenizer, train_bpe
from sae_kit.sae.base import SAE
from sae_kit.sae.relu import ReLUConfig, ReLUSAE
from sae_kit.sae.topk import TopKConfig

CONTEXT = 64
SITES = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post")


@lru_cache
def tokenizer() -> Tokenizer:
    """Every word of the prompt families is one token of this one."""
    return train_bpe(synthetic_text(0, 3000), 1800)


@lru_cache
def model() -> GPT2:
    """Two blocks; every tensor random, biases and LayerNorms too."""
    vocab = tokenizer().vocab_size
    return random_gpt2(
        GPT2Config(n_layer=2, n_head=4, d_model=32, d_mlp=64, n_ctx=128, n_vocab=vocab)
    )


@lru_cache
def documents(seed: int) -> tuple[str, ...]:
    """Short ones, of one line."""
    return tuple(text for text in synthetic_text(seed, 400) if not {'"', "\n"} & set(text))


def text(folder: Path, *, context_size: int = CONTEXT) -> TextConfig:
    """Some thousand tokens of short documents, half of them held out."""
    for name, seed in (("train", 1), ("heldout", 2)):
        lines = [f'{{"text": "{document}"}}' for document in documents(seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return TextConfig(
        paths=(str(folder),), heldout_paths=("heldout.jsonl",), context_size=context_size
    )


def random_saes(sites: tuple[Site, ...] = SITES, *, d_sae: int = 96) -> dict[Site, SAE]:
    """An untrained TopK SAE for every site."""
    return {
        site: TopKConfig(d_sae=d_sae, k=4).build(
            model().width(site), generator=torch.Generator().manual_seed(i)
        )
        for i, site in enumerate(sites)
    }


def subject(folder: Path, saes: Mapping[Site, SAE] | None = None, *, seed: int = 0) -> Subject:
    """The subject; without `saes` it has random ones."""
    lm = LanguageModel(model(), tokenizer(), "toy", None, False)
    saes = random_saes() if saes is None else saes
    return Subject(language_model=lm, saes=saes, tokens=text(folder), seed=seed)


def identity_sae(d_in: int) -> ReLUSAE:
    """Gives back its input exactly: relu(x) - relu(-x)."""
    sae = ReLUConfig(d_sae=2 * d_in).build(d_in, generator=torch.Generator().manual_seed(0))
    both = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
    zeros = torch.zeros(d_in)
    sae.load_weights(
        {"W_enc": both.T, "b_enc": torch.zeros(2 * d_in), "W_dec": both, "b_dec": zeros}
    )
    return sae


def constant_sae(output: torch.Tensor) -> ReLUSAE:
    """Gives `output` whatever it reads, and no latent ever fires."""
    d_in = len(output)
    sae = ReLUConfig(d_sae=8).build(d_in, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(8, d_in)
    sae.load_weights(
        {"W_enc": zeros.T, "b_enc": -torch.ones(8), "W_dec": zeros, "b_dec": output.float()}
    )
    return sae
