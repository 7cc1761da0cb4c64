import warnings

import pytest
import torch

from sae_kit import check_fit, load_model
from sae_kit.models.expectations import ExpectationWarning
from sae_kit.sae.topk import TopKConfig

SITE = "blocks.3.hook_resid_pre"


@pytest.fixture(scope="module")
def lm():
    return load_model("demo")


def make(d_in=256, **metadata):
    sae = TopKConfig(d_sae=16, k=2).build(d_in, generator=torch.Generator().manual_seed(0))
    sae.metadata = {"hook_name": SITE, "model_name": "demo", "context_size": 8, **metadata}
    return sae


def contexts(lm, n_pos=8, bos=True):
    tokens = torch.arange(2 * n_pos).view(2, n_pos)
    tokens[:, 0] = lm.tokenizer.eot_id if bos else 5
    return tokens


def test_what_fits_is_passed_in_silence(lm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_fit(make(prepend_bos=True), lm, tokens=contexts(lm))
        check_fit(make(hook_name=None), lm, site=SITE)


@pytest.mark.parametrize(
    ("sae", "site", "message"),
    [
        (make(d_in=32), None, "is 256 wide, and the SAE reads 32"),
        (make(), "blocks.4.hook_resid_pre", f"is not that of the SAE; give '{SITE}'"),
        (make(hook_name=None), None, "does not say where it belongs; give site="),
        (make(hook_name="blocks.30.hook_resid_pre"), None, "the model has no site 'blocks.30"),
    ],
)
def test_what_cannot_work_is_refused(sae, site, message, lm):
    with pytest.raises(ValueError, match=message):
        check_fit(sae, lm, site=site)


def test_misuse_is_warned_about(lm):
    processed = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    with pytest.warns(ExpectationWarning) as caught:
        check_fit(make(prepend_bos=True, **processed), lm, tokens=contexts(lm, 16, bos=False))
    text = " ".join(str(warning.message) for warning in caught)
    assert len(caught) == 3
    for what in ("like=sae", "these have 16", "prepend_bos=true"):
        assert what in text


def test_a_model_like_an_sae_is_the_one_it_was_trained_on():
    raw = load_model("demo")
    centred = load_model(like=make(model_from_pretrained_kwargs={"center_writing_weights": True}))
    assert (raw.centred, centred.centred) == (False, True)
    assert centred.name == "demo"
    tokens = contexts(raw)
    stream = raw.model.run(tokens, capture=[SITE]).acts[SITE]
    own = centred.model.run(tokens, capture=[SITE]).acts[SITE]
    torch.testing.assert_close(own, stream - stream.mean(-1, keepdim=True), atol=1e-4, rtol=1e-4)


def test_what_is_given_goes_before_what_the_sae_says():
    sae = make(model_name="no/such-model", model_from_pretrained_kwargs={})
    assert load_model("demo", like=sae, centre_writing_weights=True).centred
    with pytest.raises(ValueError, match="name: none given, and no SAE that says which"):
        load_model(like=make(model_name=None))
