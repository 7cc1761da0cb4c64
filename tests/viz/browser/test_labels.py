import dataclasses

import torch
import toy_results

from sae_kit.viz.browser.atlas import Atlas
from sae_kit.viz.browser.labels import labels, peak_tokens

SITE = toy_results.SITES[0]


def labelled(tokens: list[int], acts: list[float]) -> list[int]:
    """The label of a latent whose strongest contexts have these tokens and activations."""
    result = toy_results.dashboard()
    contexts = result.arrays["contexts"].clone()
    contexts.flatten()[: len(tokens)] = torch.tensor(tokens).int()
    place = torch.full((70, 6), -1, dtype=torch.int32)
    place[0, : len(tokens)] = torch.arange(len(tokens)).int()
    kept = result.arrays[f"top_acts/{SITE}"].clone()
    kept[0, : len(acts), toy_results.N_BEFORE] = torch.tensor(acts).half()
    arrays = {"contexts": contexts, f"top_place/{SITE}": place, f"top_acts/{SITE}": kept}
    atlas = Atlas([dataclasses.replace(result, arrays={**result.arrays, **arrays})])
    assert peak_tokens(atlas, place)[0, : len(tokens)].tolist() == tokens
    return labels(atlas, 0)[0]


def test_the_token_with_most_activation_leads():
    assert labelled([7, 8, 8], [5.0, 3.0, 3.0]) == [8, 7]


def test_a_second_token_needs_a_quarter_of_the_activation():
    assert labelled([7, 8, 8], [1.0, 3.0, 3.0]) == [8]


def test_many_different_tokens_still_have_a_leading_one():
    assert labelled([7, 8, 9, 10, 11], [1.0, 1.2, 1.0, 1.0, 1.0]) == [8]


def test_a_latent_that_never_fired_has_none():
    assert labelled([], []) == []


def test_without_contexts_there_are_no_labels():
    assert labels(Atlas([toy_results.evolution()]), 0) == [[]] * 70
