"""Sparse autoencoders: vectors in, codes and reconstructions out. One module per architecture."""

from sae_kit.sae.base import SAE, Inference, Losses, Moment, SAEConfig, TrainOutput
from sae_kit.sae.code import SparseCode

__all__ = ["SAE", "Inference", "Losses", "Moment", "SAEConfig", "SparseCode", "TrainOutput"]
