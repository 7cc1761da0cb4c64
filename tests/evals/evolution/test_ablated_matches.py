"""ablated_matches: which pairs are ablated, in which contexts, and rank correlation."""

import pytest
import torch
from scipy.sparse import csr_array

from sae_kit.evals.evolution.ablated_matches import COLUMNS, EDGES, AblatedMatches, Text, drawn
from sae_kit.evals.evolution.activity import Activity, Threshold
from sae_kit.evals.evolution.cooccurrence import Pairs


def matches(
    similarity: list[float],
    lost: list[float],
    *,
    n_random: int = 0,
    n_active: list[int] | None = None,
) -> AblatedMatches:
    n = len(similarity)
    active = torch.tensor(n_active or [5] * n, dtype=torch.float64)
    return AblatedMatches(
        index=torch.zeros(n, 2, dtype=torch.int64),
        similarity=torch.tensor(similarity, dtype=torch.float64),
        is_random=torch.arange(n) >= n - n_random,
        effects={column: torch.tensor(lost, dtype=torch.float64) for column in COLUMNS}
        | {"n_active": active},
    )


def test_rank_correlation_of_known_orders():
    assert matches([0.1, 0.5, 0.9], [1.0, 7.0, 8.0]).rank_correlation() == pytest.approx(1)
    assert matches([0.1, 0.5, 0.9], [3.0, 2.0, 0.0]).rank_correlation() == pytest.approx(-1)
    # Ranks 0, 1, 2, 3 against 1, 0, 3, 2: 1 - 6 (4) / (4 (16 - 1)).
    swapped = matches([0.1, 0.2, 0.3, 0.4], [2.0, 1.0, 4.0, 3.0])
    assert swapped.rank_correlation() == pytest.approx(1 - 24 / 60)
    # Ties share their mean rank: 0, 1.5, 1.5 against 0, 1, 2.
    tied = matches([0.1, 0.5, 0.5], [1.0, 2.0, 3.0])
    assert tied.rank_correlation() == pytest.approx(1.5 / (1.5 * 2) ** 0.5)


def test_pairs_drawn_at_random_do_not_count_for_it():
    found = matches([0.1, 0.5, 0.0], [1.0, 2.0, 90.0], n_random=1)
    assert found.rank_correlation() == pytest.approx(1)
    assert found.n_matches == 2


def test_pairs_whose_match_was_never_active_do_not_count_for_it():
    """They have lost nothing, because there was nothing."""
    found = matches([0.1, 0.2, 0.5, 0.9], [2.0, 0.0, 1.0, 0.5], n_active=[5, 0, 5, 5])
    assert found.rank_correlation() == pytest.approx(-1)
    assert found.n_matches == 4


def test_without_pairs_or_without_spread_it_is_zero():
    assert matches([], []).rank_correlation() == 0
    assert matches([0.5, 0.5], [1.0, 2.0]).rank_correlation() == 0


def test_arrays_give_back_what_was_found():
    found = matches([0.1, 0.5], [1.0, 2.0], n_random=1)
    again = AblatedMatches.of_arrays(dict(found.arrays("a>b")), "a>b")
    assert torch.equal(again.similarity, found.similarity)
    assert torch.equal(again.is_random, found.is_random)
    assert torch.equal(again.effects["share_lost"], found.effects["share_lost"])
    assert AblatedMatches.of_arrays({}, "a>b").n_matches == 0


def test_contexts_are_those_of_the_rows_spread_evenly():
    counting = torch.ones(10, 4, dtype=torch.bool)
    counting[:, 0] = False  # 3 rows a context
    text = Text(torch.zeros(10, 4, dtype=torch.int64), counting)
    rows = torch.arange(30)
    assert text.contexts_of(rows[9:18], 9).tolist() == [3, 4, 5]
    assert text.contexts_of(rows, 4).tolist() == [0, 3, 6, 9]
    assert text.contexts_of(rows[29:], 4).tolist() == [9]


def of_similarities(values: torch.Tensor) -> Pairs:
    """Latents n and n, n from 0 on."""
    index = torch.arange(len(values))[:, None].expand(-1, 2)
    return Pairs(index, torch.full((len(values),), 10), {"pearson": values}, {})


def activity(n_firing: torch.Tensor) -> Activity:
    """Latents that fire in the first positions, so often."""
    fires = torch.arange(int(n_firing.max()))[:, None] < n_firing
    return Activity.of(csr_array(fires.float().numpy()), Threshold())


@pytest.mark.parametrize("n", [0, 5, 10, 25, 60])
def test_pairs_come_evenly_from_all_similarities(n):
    """As many as asked for, and the most alike are not what a remainder is taken from."""
    values = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
    side = activity(torch.arange(1, 1001))
    found = drawn(of_similarities(values), "pearson", side, side, n, torch.Generator())
    similarities = torch.tensor([one for targets in found.values() for _, one in targets])
    assert len(similarities) == n
    by_bin = torch.bucketize(similarities, torch.tensor(EDGES[1:-1])).bincount(minlength=10)
    assert by_bin.max() - by_bin.min() <= 1
    assert abs(by_bin[:5].sum() - by_bin[5:].sum()) <= 1


def test_a_latent_that_never_fires_is_not_ablated():
    """Alike by their decoder rows are also latents that are never there."""
    side = activity(torch.tensor([0, 3, 0, 5]))
    pairs = of_similarities(torch.tensor([0.95, 0.96, 0.97, 0.98], dtype=torch.float64))
    found = drawn(pairs, "pearson", side, side, 40, torch.Generator())
    assert sorted(found) == [1, 3]
