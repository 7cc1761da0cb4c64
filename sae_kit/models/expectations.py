"""What a saved SAE expects of the model and the text that it is used on.

An SAE is good for the activations it was trained on: those of one site of one model, processed in
one way, on contexts of some length. Files say so in SAELens' words, which `Expectations` reads.
What cannot work (another width, a site that the model lacks) is refused; what works but computes
something else than its authors measured is warned about, once, with what to do:

    lm = load_model(like=sae)          # the model as the SAE expects it
    check_fit(sae, lm, tokens=tokens)  # what is amiss, if anything (models/fit.py)

Limits: of a model's processing only mean-centring changes what our sites hold (docs/sites.md); the
rest of TransformerLens' settings is not looked at.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

from sae_kit.models.hooks import Site

ALIASES = {
    "gpt2-small": "gpt2",
    "openai-community/gpt2": "gpt2",
    "openai-community/gpt2-medium": "gpt2-medium",
    "openai-community/gpt2-large": "gpt2-large",
    "openai-community/gpt2-xl": "gpt2-xl",
}
"""Other names of models that `load_model` knows."""

KNOWN = {"demo", *ALIASES.values()}


class ExpectationWarning(UserWarning):
    """An SAE is used otherwise than it was trained."""


@runtime_checkable
class Fitted(Protocol):
    """What expects something: an SAE."""

    metadata: dict[str, Any]
    d_in: int


@final
@dataclass(frozen=True)
class Expectations:
    """What an SAE's file says; None where it does not."""

    model_name: str | None
    """Of the model, as load_model knows it."""
    site: Site | None
    context_size: int | None
    """Tokens in a context."""
    prepend_bos: bool | None
    """Whether contexts began with the end-of-text token."""
    centred: bool | None
    """Whether the residual stream was free of its mean (centre_writing_weights)."""

    @staticmethod
    def of(metadata: Mapping[str, Any]) -> "Expectations":
        """Those of an SAE's metadata; what is of another type than it should be says nothing."""
        processing = metadata.get("model_from_pretrained_kwargs")
        centred = (
            processing.get("center_writing_weights") if isinstance(processing, Mapping) else None
        )
        name, site = metadata.get("model_name"), metadata.get("hook_name")
        size, bos = metadata.get("context_size"), metadata.get("prepend_bos")
        return Expectations(
            model_name=ALIASES.get(name, name) if isinstance(name, str) and name else None,
            site=site if isinstance(site, str) and site else None,
            context_size=size if type(size) is int and size > 0 else None,
            prepend_bos=bos if isinstance(bos, bool) else None,
            centred=centred if isinstance(centred, bool) else None,
        )

    def unmet_by_model(self, name: str, centred: bool) -> Iterator[str]:
        """What about a model, by its name and processing, is other than expected, and what to do.

        Names are compared where both are of models that `load_model` knows by name.
        """
        own = ALIASES.get(name, name)
        if self.model_name in KNOWN and own in KNOWN and own != self.model_name:
            yield (
                f"it was trained on {self.model_name!r}, and the model is {name!r}; use "
                f"load_model({self.model_name!r})"
            )
        if self.centred is not None and self.centred != centred:
            own_stream = "as trained" if self.centred else "mean-centred"
            yield (
                f"it expects a residual stream that is {'' if self.centred else 'not '}"
                f"mean-centred, and the model's is {own_stream}; load the model with "
                f"centre_writing_weights={self.centred}, or like=sae"
            )

    def unmet_by_text(self, context_size: int, has_bos: bool) -> Iterator[str]:
        """What about the contexts is other than expected, and what to do."""
        if self.context_size is not None and context_size > self.context_size:
            yield (
                f"it was trained on contexts of {self.context_size} tokens, and these have "
                f"{context_size}; cut them at {self.context_size} (data.context_size)"
            )
        if self.prepend_bos and not has_bos:
            yield (
                "its contexts began with the end-of-text token, and these do not; put it in front "
                "(data.prepend_bos=true)"
            )


def warn_of(site: Site, unmet: Iterable[str]) -> None:
    """One warning for each expectation that is not met."""
    for what in unmet:
        warnings.warn(f"SAE at {site}: {what}", ExpectationWarning, stacklevel=3)
