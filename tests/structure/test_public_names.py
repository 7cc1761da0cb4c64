"""The names that `import sae_kit` promises: a frozen list, so that a change is deliberate."""

import sae_kit


def test_public_names_are_the_promised_ones():
    assert sorted(sae_kit.__all__) == [
        "GPT2",
        "LanguageModel",
        "Prefix",
        "Result",
        "Run",
        "SAE",
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
    assert all(hasattr(sae_kit, name) for name in sae_kit.__all__)
