"""What every evaluation is: a config that runs on a subject and returns a Result.

    result = Core(n_tokens=65536).run(subject)
    result.save(folder)
    figures = Core.plot(Result.load(folder))

An evaluation is one module with one config. It says what it finds out (`run`), and how a saved
result is drawn (`plot`), which sees nothing but the result. What several evaluations need of a
subject (its held-out text, a run with an activation replaced) is here.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_kit import config
from sae_kit.config import Family
from sae_kit.data.tokens import TokensConfig, check_context, take
from sae_kit.dist import World
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Site, check_sites
from sae_kit.models.pretrained import LanguageModel
from sae_kit.result import Result
from sae_kit.sae.base import SAE

if TYPE_CHECKING:
    import matplotlib.figure

MAX_LOGITS = 1 << 24
"""Logits computed at once, at most (64 MiB in float32), one context aside."""


@final
@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated: a language model, SAEs in it, and on what text."""

    language_model: LanguageModel
    saes: Mapping[Site, SAE]
    """By the site they read; may be empty for evaluations of the model alone."""
    tokens: TokensConfig
    """The text; evaluations read its held-out split."""
    seed: int = 0
    """Draws everything an evaluation draws: the order of the text, prompts, resamples."""

    @property
    def model(self) -> GPT2:
        """The model itself."""
        return self.language_model.model

    @property
    def device(self) -> torch.device:
        """Where the model lies, and the SAEs must."""
        return self.model.device

    def check_saes(self) -> None:
        """Refuse a subject without SAEs, or with one that does not fit its site.

        Raises:
            ValueError: no SAEs, a site that the model lacks, or an SAE of another width.
        """
        if not self.saes:
            raise ValueError(
                "saes: none given, and this evaluation is about SAEs; give run or saes"
            )
        check_sites(self.saes, self.model.sites(), "saes")
        for site, sae in self.saes.items():
            width = self.model.width(site)
            if sae.d_in != width:
                raise ValueError(
                    f"saes: the one at {site!r} has d_in {sae.d_in}, but the site is {width} wide; "
                    "give the model and the site that it was trained on"
                )

    def contexts(
        self, n_tokens: int, tokens: TokensConfig | None = None
    ) -> Int[Tensor, "batch pos"]:
        """Held-out contexts of `n_tokens` tokens in all, rounded up to whole contexts.

        No context comes twice: where the held-out text is shorter, fewer are returned.

        Args:
            n_tokens: how many tokens, BOS included.
            tokens: other text than the subject's own.

        Raises:
            ValueError: there is no such text, or its contexts are longer than the model's.
        """
        tokens = tokens or self.tokens
        check_context(tokens.context_size, self.model.n_ctx)
        # Evaluations run in one process, whatever the training did.
        alone = World(0, 1)
        source = tokens.open(
            self.language_model.tokenizer, split="heldout", world=alone, seed=self.seed
        )
        n = -(-n_tokens // tokens.context_size)
        return take(source, n if source.n_contexts is None else min(n, source.n_contexts))

    def contexts_per_pass(self, n_pos: int) -> int:
        """How many contexts of `n_pos` tokens a pass that computes logits takes at once."""
        return max(1, MAX_LOGITS // (n_pos * self.model.config.n_vocab))

    def description(self) -> dict[str, Any]:
        """What it is, as JSON values."""
        lm = self.language_model
        return {
            "model": lm.name,
            "revision": lm.revision,
            "centre_writing_weights": lm.centred,
            "saes": {
                site: {**config.to_dict(sae.config), "d_in": sae.d_in}
                for site, sae in self.saes.items()
            },
            "tokens": config.to_dict(self.tokens),
            "seed": self.seed,
        }


class Evaluation(Family, ABC, tag="name", package="sae_kit.evals"):
    """A question about a trained thing. Subclasses are final, frozen, keyword-only dataclasses."""

    @abstractmethod
    def run(self, subject: Subject) -> Result:
        """Find out. Equal subjects and seeds give equal numbers.

        Raises:
            ValueError: the subject or the settings do not fit; before the work starts.
        """

    @staticmethod
    @abstractmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """The figures of a result, also of one read from disk, by the name of their file."""

    @final
    def provenance(self, subject: Subject) -> dict[str, Any]:
        """What a result keeps of where it comes from."""
        return {
            **config.provenance(),
            "evaluation": config.to_dict(self),
            "subject": subject.description(),
        }


def replaced(
    acts: Float[Tensor, "batch pos *axes"],
    counts: Bool[Tensor, "batch pos"],
    rows: Float[Tensor, "rows width"] | Float[Tensor, " width"],
) -> Float[Tensor, "batch pos *axes"]:
    """A copy of a site's activations with the counting positions replaced, the rest untouched.

    Args:
        acts: what the model computed.
        counts: true where a position is replaced.
        rows: a row for each of these, in reading order, or one row for all.
    """
    spliced = acts.flatten(2).clone()
    spliced[counts] = rows.to(acts.dtype)
    return spliced.view(acts.shape)


def logits_with(
    model: GPT2,
    tokens: Int[Tensor, "batch pos"],
    site: Site,
    acts: Float[Tensor, "batch pos *axes"],
) -> Float[Tensor, "batch pos vocab"]:
    """The logits when the activations at `site` are `acts`.

    At a residual-stream site the run starts there. Elsewhere it starts from the tokens, since other
    parts of the model bypass the site.
    """
    if ".hook_resid_" in site:
        logits = model.run(start=(site, acts)).logits
    else:
        logits = model.run(tokens, edit={site: lambda _: acts}).logits
    assert logits is not None
    return logits
