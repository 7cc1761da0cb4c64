"""quasi_boolean: planted AND, OR, XOR, duplicates and dense latents."""

import pytest
import torch
from scipy.sparse import csr_array

from sae_kit.evals.evolution.quasi_boolean import AND, OR, Candidates, Criteria, find

N = 40_000


def fires(p: float, seed: int) -> torch.Tensor:
    return torch.rand(N, generator=torch.Generator().manual_seed(seed)) < p


A1, A2, A3 = fires(0.1, 0), fires(0.2, 1), fires(0.15, 2)


def found(up: list[torch.Tensor], down: list[torch.Tensor], **criteria) -> Candidates:
    sides = [csr_array(torch.stack(side, 1).int().numpy()) for side in (up, down)]
    return find(sides[0], sides[1], Criteria(**criteria))


def triples(candidates: Candidates, which: str) -> list[tuple[int, ...]]:
    """Kind, parent, parent, child of those of which something holds."""
    chosen = getattr(candidates, which)
    rows = torch.cat([candidates.kind[:, None], candidates.index], 1)[chosen]
    return [tuple(row) for row in rows.tolist()]


def test_and_and_or_are_found_and_xor_is_not():
    down = [A1 & A2, A1 | A3, A1 ^ A2, fires(0.05, 9)]
    candidates = found([A1, A2, A3], down)
    expected = [(AND, 0, 1, 0), (OR, 0, 2, 1)]
    assert triples(candidates, "exactly_two") == expected
    assert triples(candidates, "confirmed") == expected
    assert candidates.count(AND) == candidates.count(OR) == (1, 1, 1)


def test_duplicates_upstream_are_the_papers_candidates_but_not_confirmed():
    """Two copies of a latent are both necessary and both sufficient for a third."""
    copy = A1 & ~fires(0.0005, 5)
    candidates = found([A1, copy], [A1 & copy], level=0.99)
    assert triples(candidates, "exactly_two") == [(AND, 0, 1, 0), (OR, 0, 1, 0)]
    assert triples(candidates, "confirmed") == []


def test_a_copy_of_a_parent_that_never_comes_without_the_other_is_no_and():
    """A1 within A2, and the child is A1: both are necessary, but A1 alone is sufficient."""
    inner = A2 & fires(0.3, 5)
    candidates = found([inner, A2], [inner])
    assert (AND, 0, 1, 0) in triples(candidates, "exactly_two")
    assert triples(candidates, "confirmed") == []


def test_a_latent_that_is_nearly_always_active_is_no_parent():
    dense = fires(0.9995, 5)
    candidates = found([A1, dense], [A1 & fires(0.5, 6)], level=0.99)
    assert triples(candidates, "exactly_two") == [(AND, 0, 1, 0)]
    assert triples(candidates, "confirmed") == []


def test_a_dense_third_parent_hides_an_and_from_the_papers_filter_only():
    candidates = found([A1, A2, fires(0.9999, 5)], [A1 & A2], level=0.99)
    assert triples(candidates, "exactly_two") == []
    assert triples(candidates, "confirmed") == [(AND, 0, 1, 0)]


def test_a_child_that_needs_more_than_its_parents_is_not_confirmed():
    candidates = found([A1, A2], [A1 & A2 & fires(0.5, 6)])
    assert triples(candidates, "exactly_two") == [(AND, 0, 1, 0)]
    assert triples(candidates, "confirmed") == []


def test_what_holds_in_one_half_only_is_not_confirmed():
    first = torch.arange(N) < N // 2
    candidates = found([A1, A2], [A1 & (A2 | ~first)])
    assert triples(candidates, "exactly_two") == [(AND, 0, 1, 0)]
    assert triples(candidates, "confirmed") == []


def test_rare_children_are_not_judged():
    """Seen together at fewer positions than asked for, in either half."""
    rare = torch.zeros(N, dtype=torch.bool)
    rare[(A1 & A2).nonzero()[:12]] = True  # all of them in the first half
    candidates = found([A1, A2], [rare], n_both=10)
    assert triples(candidates, "exactly_two") == [(AND, 0, 1, 0)]
    assert triples(candidates, "confirmed") == []
    assert len(found([A1, A2], [rare], n_both=13).index) == 0


def test_noise_hides_a_rare_and_from_the_papers_threshold():
    """One label in a hundred wrong: necessity falls far below 0.999."""
    noisy = (A1 & A2) ^ fires(0.01, 7)
    assert len(found([A1, A2], [noisy]).index) == 0


@pytest.mark.parametrize("n_dense", [2, 3])
def test_a_child_of_very_many_parents_is_left_alone(n_dense):
    """An AND of two, of which dense latents are necessary as well: up to four are looked at."""
    parents = [A1, A2, *(fires(0.9999, 20 + i) for i in range(n_dense))]
    candidates = found(parents, [A1 & A2], level=0.99)
    assert triples(candidates, "confirmed") == ([(AND, 0, 1, 0)] if n_dense == 2 else [])
    assert not candidates.exactly_two.any()


def test_without_any_activity_there_is_nothing():
    nothing = torch.zeros(N, dtype=torch.bool)
    candidates = found([nothing, nothing], [nothing])
    assert candidates.index.shape == (0, 3)
    assert candidates.count(AND) == (0, 0, 0)
