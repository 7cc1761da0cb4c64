"""A small planted dictionary, and SAEs of its rows."""

import dataclasses

import torch

from sae_kit.data.planted import PLANTED, PlantedConfig
from sae_kit.evals.base import PlantedSubject
from sae_kit.sae.topk import TopKConfig

CONFIG = PlantedConfig(d_in=48, n_features=64, mean_active=4.0, hierarchy=0.25)


def config(**changes: float) -> PlantedConfig:
    """The dictionary, with fields changed."""
    return dataclasses.replace(CONFIG, **changes)


def subject(*, d_sae: int = 80) -> PlantedSubject:
    """An untrained SAE of its rows."""
    generator = torch.Generator().manual_seed(0)
    sae = TopKConfig(d_sae=d_sae, k=4).build(CONFIG.d_in, generator=generator)
    return PlantedSubject(planted=CONFIG, saes={PLANTED: sae})
