"""Neurons that switch together, planted."""

import pytest
import torch

from sae_kit.evals.loss_landscape.synchronised import Patterns

N = 200


def patterns(on: torch.Tensor) -> Patterns:
    found = Patterns(on.shape[1], device=torch.device("cpu"))
    for some in on.split(33):
        found.update(some)
    return found


@pytest.fixture
def on():
    """Neurons 0 and 3 alike, 1, 4 and 6 alike, 2 alone, 5 never on, 7 always."""
    free = torch.rand(N, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    never, always = torch.zeros(N, 1, dtype=torch.bool), torch.ones(N, 1, dtype=torch.bool)
    a, b, c = free.split(1, dim=1)
    return torch.cat([a, b, c, a, b, never, b, always], 1)


def test_planted_groups_are_found(on):
    found = patterns(on).groups()
    group = found.group.tolist()
    assert group[0] == group[3]
    assert group[1] == group[4] == group[6]
    assert len({group[0], group[1], group[2]}) == 3
    assert found.sizes.tolist() == [3, 2]


def test_neurons_that_never_switch_are_counted_apart(on):
    found = patterns(on).groups()
    assert (found.n_never, found.n_always) == (1, 1)
    assert found.group[5] == found.group[7] == -1


def test_differences_are_counted(on):
    differing = patterns(on).differing()
    expected = (on[:, :, None] != on[:, None, :]).sum(0).double()
    assert torch.equal(differing, expected)


def test_near_groups_join_what_differs_a_little(on):
    on[:3, 3] = ~on[:3, 3]  # at three of 200 positions
    assert patterns(on).groups().sizes.tolist() == [3]
    assert patterns(on).groups(0.02).sizes.tolist() == [3, 2]


def test_half_of_the_positions_is_no_tolerance(on):
    with pytest.raises(ValueError, match=r"share: 0\.5"):
        patterns(on).groups(0.5)
