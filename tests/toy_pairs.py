"""Pairs and scenes of small models, random or compiled, for tests of patching."""

from collections.abc import Sequence

import torch
from circuits.compiler import Compiled
from conftest import random_gpt2
from torch import Tensor

from sae_kit.data.pairs import Column, Pairs
from sae_kit.evals.patches.scenes import EMBED, Runs, Scene, Stage
from sae_kit.evals.patches.units import KINDS
from sae_kit.evals.shared.ablations import ABLATIONS
from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.hooks import Site
from sae_kit.sae.base import SAE
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig

CONFIG = GPT2Config(n_layer=3, n_head=2, d_model=16, d_mlp=24, n_ctx=8, n_vocab=20)
N_PAIRS, N_POS = 4, 7
SAE_SITES = ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.hook_mlp_out")


def pairs(
    clean: Tensor, corrupt: Tensor, answers: Sequence[int], wrong: Sequence[int], n_vocab: int
) -> Pairs:
    """Pairs whose columns are the positions, named p0, p1, ..."""

    def mask(ids: Sequence[int]) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(ids), n_vocab).bool()

    return Pairs(
        clean=clean,
        corrupt=corrupt,
        answers=mask(answers),
        wrong=mask(wrong),
        columns=tuple(Column(f"p{i}", torch.full((len(clean),), i)) for i in range(clean.shape[1])),
    )


def random_pairs(*, n: int = N_PAIRS, seed: int = 0) -> Pairs:
    """Random prompts for `CONFIG`, which differ from position 2 on."""
    generator = torch.Generator().manual_seed(seed)
    vocab = CONFIG.n_vocab
    clean = torch.randint(vocab, (n, N_POS), generator=generator)
    corrupt = (clean + torch.randint(1, vocab, (n, N_POS), generator=generator)) % vocab
    corrupt[:, :2] = clean[:, :2]
    answers = torch.randint(vocab, (n,), generator=generator)
    return pairs(clean, corrupt, answers.tolist(), ((answers + 1) % vocab).tolist(), vocab)


def random_model(*, double: bool = False) -> GPT2:
    """A small GPT-2 in which everything matters."""
    model = random_gpt2(CONFIG)
    return model.double() if double else model


def random_saes() -> dict[Site, SAE]:
    """Untrained, at `SAE_SITES`; one of them reads heads."""
    configs = (TopKConfig(d_sae=40, k=3), ReLUConfig(d_sae=30), TopKConfig(d_sae=20, k=2))
    generator = torch.Generator().manual_seed(0)
    made: dict[Site, SAE] = {}
    for site, config in zip(SAE_SITES, configs, strict=True):
        made[site] = config.build(CONFIG.d_model, generator=generator).requires_grad_(False)
    return made


def pairs_of(made: Compiled) -> Pairs:
    """The pairs that a model was compiled for."""
    return pairs(made.clean, made.corrupt, made.answers, made.wrong, made.model.config.n_vocab)


def scenes(
    model: GPT2, own: Pairs, *, ablation: str = "corrupt"
) -> tuple[Stage, Runs, dict[str, Scene]]:
    """Both directions of patching, with every site captured at which a kind of unit is."""
    stage = Stage(model, own)
    plain = [kind for kind in KINDS.values() if not kind.needs_saes]
    sites = [EMBED, *(units.site for kind in plain for units in kind.of(model, own, {}))]
    how = ABLATIONS[ablation](len(own), seed=0)
    with torch.no_grad():
        runs = Runs.of(stage, how, sites)
    return stage, runs, runs.scenes(stage, how)
