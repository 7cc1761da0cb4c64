"""Prompts drawn from held-out text, paired."""

import dataclasses

import pytest
import torch

from sae_kit.evals.regions import sampled_pairs
from sae_kit.evals.regions.sampled_pairs import Pairs, Sample


@pytest.fixture(scope="module")
def sample(subject) -> Sample:
    return Sample.of(subject, n_pairs=20, n_planes=3, prompt_size=6)


def known(tokens) -> set[tuple[int, ...]]:
    return {tuple(row) for row in tokens.tolist()}


def test_a_pair_is_a_prompt_and_the_next(sample):
    pairs = sample.neighbours
    assert sample.prompts.shape == (21, 6)
    assert torch.equal(pairs.a, sample.prompts[:-1])
    assert torch.equal(pairs.b, sample.prompts[1:])


def test_no_prompt_ends_a_document(subject, sample):
    eot = subject.language_model.tokenizer.eot_id
    every = subject.contexts(6000, dataclasses.replace(subject.tokens, context_size=6))
    assert (every[:, -1] == eot).any()
    for prompts in (sample.prompts, sample.same_ending.a, sample.triples.flatten(0, 1)):
        assert (prompts[:, -1] != eot).all()


def test_pairs_of_the_same_ending_share_their_last_token_and_no_prompt(sample):
    pairs = sample.same_ending
    assert 0 < len(pairs.a) <= 20
    assert pairs.same_ending.all()
    assert len(known(torch.cat([pairs.a, pairs.b]))) == 2 * len(pairs.a)


def test_triples_end_in_three_tokens_and_share_no_prompt(sample):
    assert sample.triples.shape == (3, 3, 6)
    for triple in sample.triples:
        assert len(set(triple[:, -1].tolist())) == 3
    assert len(known(sample.triples.flatten(0, 1))) == 9


def test_the_seed_draws_them(subject, sample):
    again = Sample.of(subject, n_pairs=20, n_planes=3, prompt_size=6)
    assert torch.equal(again.prompts, sample.prompts)
    other = dataclasses.replace(subject, seed=1)
    assert not torch.equal(
        Sample.of(other, n_pairs=20, n_planes=3, prompt_size=6).prompts, sample.prompts
    )


def test_more_pairs_are_the_same_and_others(subject, sample):
    more = Sample.of(subject, n_pairs=30, n_planes=0, prompt_size=6)
    assert torch.equal(more.prompts[:21], sample.prompts)
    assert len(more.triples) == 0


def test_pairs_know_whether_they_end_alike():
    a, b = torch.tensor([[1, 2], [1, 2]]), torch.tensor([[0, 2], [1, 3]])
    assert Pairs(a, b).same_ending.tolist() == [True, False]


def test_text_that_is_too_short_is_refused(subject, monkeypatch):
    with pytest.raises(ValueError, match=r"n_pairs: the held-out text has .* n_pairs=100000 "):
        Sample.of(subject, n_pairs=100_000, n_planes=0, prompt_size=6)
    monkeypatch.setattr(sampled_pairs, "_triples", lambda prompts, n: prompts[:0].view(0, 3, 6))
    with pytest.raises(ValueError, match=r"n_slices=2 takes 6"):
        Sample.of(subject, n_pairs=2, n_planes=2, prompt_size=6)
