"""Whether an SAE fits the model and the text that it is about to be used on."""

from jaxtyping import Int
from torch import Tensor

from sae_kit.models.expectations import Expectations, Fitted, warn_of
from sae_kit.models.hooks import Site, check_sites
from sae_kit.models.pretrained import LanguageModel


def check_fit(
    sae: Fitted,
    lm: LanguageModel,
    *,
    site: Site | None = None,
    tokens: Int[Tensor, "batch pos"] | None = None,
) -> None:
    """Refuse an SAE that cannot work on a model's activations, warn about one that is misused.

    Args:
        sae: the SAE.
        lm: the model.
        site: where its input is taken from; None = where its file says.
        tokens: contexts that it is to be used on.

    Raises:
        ValueError: the model has no such site, or one of another width; or the SAE was trained on
            another site; or nothing says which.
    """
    expected = Expectations.of(sae.metadata)
    site = site or expected.site
    if site is None:
        raise ValueError("site: the SAE's file does not say where it belongs; give site=")
    check_sites([site], lm.model.sites(), "site")
    if expected.site is not None and site != expected.site:
        raise ValueError(f"site: {site!r} is not that of the SAE; give {expected.site!r}")
    if sae.d_in != (width := lm.model.width(site)):
        raise ValueError(
            f"site: {site!r} is {width} wide, and the SAE reads {sae.d_in}; give the model and the "
            "site that it was trained on"
        )
    unmet = list(expected.unmet_by_model(lm.name, lm.centred))
    if tokens is not None:
        has_bos = bool((tokens[:, 0] == lm.tokenizer.eot_id).all())
        unmet += expected.unmet_by_text(tokens.shape[-1], has_bos)
    warn_of(site, unmet)
