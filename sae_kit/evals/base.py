"""What every evaluation is: a config that runs on a subject and returns a Result.

    result = Core(n_tokens=65536).run(subject)
    result.save(folder)
    figures = Core.plot(Result.load(folder))

An evaluation is one module with one config. It says what it finds out (`run`), and how a saved
result is drawn (`plot`), which sees nothing but the result. What several evaluations need of a
subject (its held-out text, where its SAEs belong) is here; `sae_kit.models.splice` runs the model
with an activation replaced.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from jaxtyping import Int
from torch import Tensor

from sae_kit import config
from sae_kit.config import Family
from sae_kit.data.planted import PLANTED, PlantedConfig
from sae_kit.data.tokens import TokensConfig, check_context, take
from sae_kit.dist import World
from sae_kit.models.expectations import Expectations, warn_of
from sae_kit.models.fit import check_fit
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Site, check_sites
from sae_kit.models.pretrained import LanguageModel
from sae_kit.result import Result
from sae_kit.sae.base import SAE

if TYPE_CHECKING:
    import matplotlib.figure

MAX_LOGITS = 1 << 24
"""Logits computed at once, at most (64 MiB in float32), one context aside."""
SAE_ROWS = 2048
"""Rows put through an SAE at once; bounds the codes of dense architectures."""


@final
@dataclass(frozen=True, kw_only=True)
class Compared:
    """One of the sets of SAEs that an evaluation holds against one another."""

    label: str
    """Tells it from the others in tables and figures."""
    saes: Mapping[Site, SAE]
    """By the site they read."""


@final
@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated: a language model, SAEs in it, and on what text.

    Raises:
        ValueError: SAEs beside ones that are compared, or two compared sets of one label.
    """

    language_model: LanguageModel
    saes: Mapping[Site, SAE]
    """By the site they read; may be empty for evaluations of the model alone."""
    compared: tuple[Compared, ...] = ()
    """Several sets in the place of `saes`, for evaluations that compare (`Evaluation.compares`)."""
    tokens: TokensConfig
    """The text; evaluations read its held-out split."""
    seed: int = 0
    """Draws everything an evaluation draws: the order of the text, prompts, resamples."""

    def __post_init__(self) -> None:
        if self.saes and self.compared:
            raise ValueError("compared: there are saes as well; give one or the other")
        labels = [one.label for one in self.compared]
        if len(set(labels)) < len(labels):
            raise ValueError(f"compared: {labels} are not all different; give each set its label")

    @property
    def sets(self) -> tuple[Compared, ...]:
        """The sets of SAEs that are compared, or the one there is, whose label is empty."""
        return self.compared or (Compared(label="", saes=self.saes),)

    @property
    def model(self) -> GPT2:
        """The model itself."""
        return self.language_model.model

    @property
    def device(self) -> torch.device:
        """Where the model lies, and the SAEs must."""
        return self.model.device

    @property
    def writes(self) -> dict[Site, Site]:
        """The site that each SAE's output stands for, by the site it reads; they differ for
        transcoders.
        """
        return {site: _written(site, sae) for site, sae in self.saes.items()}

    def check_saes(self) -> None:
        """Refuse a subject without SAEs, or with one that does not fit its sites; warn about one
        that is used otherwise than it was trained.

        Raises:
            ValueError: no SAEs, a site that the model lacks, or an SAE of another width.
        """
        for one in self.sets:
            if not one.saes:
                of_it = f" in {one.label}" if one.label else ""
                raise ValueError(
                    f"saes: none given{of_it}, and this evaluation is about SAEs; give run or saes"
                )
            check_sites(one.saes, self.model.sites(), "saes")
            for site, sae in one.saes.items():
                self._check_sae(site, sae)

    def _check_sae(self, site: Site, sae: SAE) -> None:
        """See check_saes."""
        check_fit(sae, self.language_model, site=site)
        expected = Expectations.of(sae.metadata)
        warn_of(site, expected.unmet_by_text(self.tokens.context_size, self.tokens.prepend_bos))
        if not (writes := _written(site, sae)):
            raise ValueError(
                f"saes: the transcoder at {site!r} does not say which site it writes; set "
                "hook_name_out in its metadata"
            )
        check_sites([writes], self.model.sites(), "saes (hook_name_out)")
        if sae.d_out != (width := self.model.width(writes)):
            raise ValueError(
                f"saes: the one at {site!r} has d_out {sae.d_out}, but {writes!r} is {width} "
                "wide; give the model and the sites that it was trained on"
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
        compared = {one.label: _described(one.saes) for one in self.compared}
        return {
            "model": lm.name,
            "revision": lm.revision,
            "centre_writing_weights": lm.centred,
            "saes": _described(self.saes),
            **({"compared": compared} if compared else {}),
            "tokens": config.to_dict(self.tokens),
            "seed": self.seed,
        }


@final
@dataclass(frozen=True, kw_only=True)
class PlantedSubject:
    """What is evaluated without a language model: SAEs of rows whose features are known."""

    planted: PlantedConfig
    """The true dictionary."""
    saes: Mapping[Site, SAE]
    """By site; there is one, `planted`."""
    seed: int = 0
    """Draws the held-out rows."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the SAEs lie."""

    def check_saes(self) -> None:
        """Refuse a subject without SAEs, or with one that does not fit the rows.

        Raises:
            ValueError: no SAEs, one of another site or width, or a transcoder.
        """
        if list(self.saes) != [PLANTED]:
            raise ValueError(
                f"saes: found {sorted(self.saes)}; give run or saes of a run of "
                f"--config-name=planted, whose one site is {PLANTED!r}"
            )
        sae = self.saes[PLANTED]
        if sae.is_transcoder or sae.d_in != self.planted.d_in:
            raise ValueError(
                f"saes: widths are {sae.d_in} and {sae.d_out}; give an autoencoder of the planted "
                f"rows' width, {self.planted.d_in}"
            )

    def description(self) -> dict[str, Any]:
        """What it is, as JSON values."""
        return {
            "planted": config.to_dict(self.planted),
            "saes": _described(self.saes),
            "seed": self.seed,
        }


def _written(site: Site, sae: SAE) -> Site:
    """The site that an SAE's output stands for; empty if a transcoder does not say."""
    return str(sae.metadata.get("hook_name_out", "")) if sae.is_transcoder else site


def _described(saes: Mapping[Site, SAE]) -> dict[str, Any]:
    """SAEs as JSON values."""
    return {
        site: {**config.to_dict(sae.config), "d_in": sae.d_in, "digest": _digest(sae)}
        for site, sae in saes.items()
    }


def _digest(sae: SAE) -> str:
    """Tells it from others of its config; of the decoder's bits."""
    decoder = sae.W_dec.detach().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(decoder.numpy().data).hexdigest()[:12]


class Evaluation(Family, ABC, tag="name", package="sae_kit.evals"):
    """A question about a trained thing. Subclasses are final, frozen, keyword-only dataclasses."""

    subject_type: ClassVar[type] = Subject
    """What `run` takes: a Subject, or a PlantedSubject for what needs no language model."""
    compares: ClassVar[bool] = False
    """Whether it can hold several sets of SAEs against one another (`Subject.compared`)."""
    browsable: ClassVar[bool] = False
    """Whether `sae_kit.viz.browser` makes a site of its results."""
    figure_formats: ClassVar[tuple[str, ...]] = ("png",)
    """What its figures are saved as."""

    @abstractmethod
    def run(self, subject: Any) -> Result:
        """Find out. Equal subjects and seeds give equal numbers.

        Args:
            subject: of type `subject_type`.

        Raises:
            ValueError: the subject or the settings do not fit; before the work starts.
        """

    @staticmethod
    @abstractmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """The figures of a result, also of one read from disk, by the name of their file."""

    @staticmethod
    def files(result: Result) -> Mapping[str, str]:
        """What else a result is written out as: text by the name of its file."""
        return {}

    @final
    def provenance(self, subject: Subject | PlantedSubject) -> dict[str, Any]:
        """What a result keeps of where it comes from."""
        return {
            **config.provenance(),
            "evaluation": config.to_dict(self),
            "subject": subject.description(),
        }
