"""Draws belong to (seed, name, prompt) and to nothing else."""

import torch

from sae_kit.evals.shared.draws import for_each, generator_of, standard_normal

LIKE = torch.zeros(6, 3, 5)
INDEX = torch.arange(6) + 10


def test_draws_do_not_depend_on_the_group_or_its_order():
    whole = standard_normal(LIKE, INDEX, 0, "a")
    parts = [standard_normal(LIKE[i], INDEX[i], 0, "a") for i in torch.arange(6).split(4)]
    assert torch.equal(torch.cat(parts), whole)
    order = torch.tensor([3, 0, 5])
    assert torch.equal(standard_normal(LIKE[order], INDEX[order], 0, "a"), whole[order])


def test_seeds_names_and_prompts_have_draws_of_their_own():
    keys = [(seed, name, i) for seed in (0, 1, 11) for name in ("a", "b", "1/1") for i in (0, 1)]
    first = {torch.randn(1, generator=generator_of(*key)).item() for key in keys}
    assert len(first) == len(keys)


def test_nothing_is_drawn_from_the_global_generator():
    state = torch.get_rng_state()
    drawn = standard_normal(LIKE, INDEX, 0, "a")
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn.shape == LIKE.shape


def test_draws_are_independent_standard_normal():
    drawn = standard_normal(torch.zeros(400, 5, 10), torch.arange(400), 0, "a")
    assert abs(drawn.mean().item()) < 4 / 20_000**0.5
    assert abs(drawn.var().item() - 1) < 4 * (2 / 20_000) ** 0.5
    neighbours = (drawn[1:] * drawn[:-1]).mean().item()
    assert abs(neighbours) < 4 / 20_000**0.5


def test_what_is_drawn_is_stacked():
    drawn = for_each(INDEX, 0, "a", lambda g: torch.rand(2, generator=g))
    assert drawn.shape == (6, 2)
    assert torch.equal(drawn[4], torch.rand(2, generator=generator_of(0, "a", 14)))
