import torch

from sae_kit.sorting import lexsort, offsets, rank_in_group, starts

MAJOR, MINOR = torch.tensor([1, 0, 1, 0, 1]), torch.tensor([3, 2, 1, 5, 3])


def test_sorting_by_two_keys_is_stable():
    assert lexsort(MAJOR, MINOR).tolist() == [1, 3, 2, 0, 4]
    assert lexsort(MAJOR, -MINOR).tolist() == [3, 1, 0, 4, 2]


def test_runs_of_equal_values():
    ordered = torch.tensor([0, 0, 3, 3, 3, 7])
    assert starts(ordered).tolist() == [0, 2, 5]
    assert rank_in_group(ordered).tolist() == [0, 1, 0, 1, 2, 0]
    assert offsets(ordered, 8) == [0, 2, 2, 2, 5, 5, 5, 5, 6]


def test_nothing_has_no_runs():
    nothing = torch.tensor([], dtype=torch.int64)
    assert starts(nothing).tolist() == rank_in_group(nothing).tolist() == []
    assert offsets(nothing, 2) == [0, 0, 0]
