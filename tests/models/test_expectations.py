import pytest

from sae_kit.models.expectations import Expectations, ExpectationWarning, warn_of

FULL = {
    "model_name": "gpt2-small",
    "hook_name": "blocks.8.hook_resid_pre",
    "context_size": 128,
    "prepend_bos": True,
    "model_from_pretrained_kwargs": {"center_writing_weights": True, "fold_ln": True},
}


def test_what_the_file_says_is_read_in_our_terms():
    assert Expectations.of(FULL) == Expectations("gpt2", "blocks.8.hook_resid_pre", 128, True, True)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        dict.fromkeys(FULL),
        {
            "model_name": 3,
            "hook_name": "",
            "context_size": True,
            "prepend_bos": "yes",
            "model_from_pretrained_kwargs": {"center_writing_weights": "no"},
        },
    ],
)
def test_what_it_does_not_say_is_expected_of_nobody(metadata):
    nothing = Expectations.of(metadata)
    assert nothing == Expectations(None, None, None, None, None)
    assert not list(nothing.unmet_by_model("gpt2", False))
    assert not list(nothing.unmet_by_text(4096, False))


def test_what_is_met_is_not_spoken_of():
    expected = Expectations.of(FULL)
    for name in ("gpt2", "gpt2-small", "openai-community/gpt2", "my/folder"):
        assert not list(expected.unmet_by_model(name, True))
    assert not list(expected.unmet_by_text(128, True))
    assert not list(Expectations.of({**FULL, "prepend_bos": False}).unmet_by_text(64, True))


def test_what_is_not_met_comes_with_what_to_do():
    expected = Expectations.of(FULL)
    (other,) = expected.unmet_by_model("demo", True)
    assert "trained on 'gpt2', and the model is 'demo'; use load_model('gpt2')" in other
    (raw,) = expected.unmet_by_model("gpt2", False)
    assert "centre_writing_weights=True" in raw
    openai = {**FULL, "model_from_pretrained_kwargs": {"center_writing_weights": False}}
    (centred,) = Expectations.of(openai).unmet_by_model("gpt2", True)
    assert "not mean-centred" in centred
    assert "centre_writing_weights=False" in centred
    longer, no_bos = expected.unmet_by_text(256, False)
    assert "contexts of 128 tokens, and these have 256; cut them at 128" in longer
    assert "data.prepend_bos=true" in no_bos


def test_each_is_a_warning_that_names_the_site():
    with pytest.warns(ExpectationWarning) as caught:
        warn_of("hook_embed", ["one", "two"])
    assert [str(w.message) for w in caught] == ["SAE at hook_embed: one", "SAE at hook_embed: two"]
