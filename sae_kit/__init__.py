"""sae_kit: train sparse autoencoders on GPT-2's residual stream, and put them to the test.

    from sae_kit import load_model, load_sae

    lm = load_model("demo")
    sae = load_sae("outputs/train/<run>/saes/blocks.3.hook_resid_pre")

Everything else is imported from its own module: sae_kit.data, sae_kit.train, sae_kit.evals.
"""

from sae_kit.formats.base import SAEInfo, inspect_sae, load_sae, load_saes, save_sae
from sae_kit.models.fit import check_fit
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Prefix, Run
from sae_kit.models.pretrained import LanguageModel, load_model
from sae_kit.result import Result
from sae_kit.sae import SAE, SAEConfig, SparseCode

__all__ = [
    "GPT2",
    "SAE",
    "LanguageModel",
    "Prefix",
    "Result",
    "Run",
    "SAEConfig",
    "SAEInfo",
    "SparseCode",
    "check_fit",
    "inspect_sae",
    "load_model",
    "load_sae",
    "load_saes",
    "save_sae",
]
