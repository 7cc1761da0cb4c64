"""What processes say to each other, in two and three connected processes, and alone."""

import pytest
import torch
from ranks import in_ranks

from sae_kit import dist
from sae_kit.dist import PeerLost, World


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def say_everything(here: World) -> dict[str, object]:
    own = randn(5, seed=here.rank)
    told = own.clone()
    dist.broadcast_([told])
    means = [own.clone(), own.clone().view(1, 5)]
    dist.mean_(means)
    return {
        "gathered": dist.gather({"rank": here.rank}),
        "largest": dist.largest(10 - here.rank),
        "summed": dist.summed(torch.tensor([here.rank, 1])),
        "mean": dist.mean(float(here.rank)),
        "broadcast": told,
        "means": means,
    }


def test_all_hear_the_same():
    everything = in_ranks(say_everything, size=3)
    mean = torch.stack([randn(5, seed=rank) for rank in range(3)]).mean(0)
    for heard in everything:
        assert heard["gathered"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert heard["largest"] == 10
        assert heard["summed"].tolist() == [3, 3]
        assert heard["mean"] == 1.0
        assert torch.equal(heard["broadcast"], randn(5, seed=0))
        assert [part.shape for part in heard["means"]] == [(5,), (1, 5)]
        torch.testing.assert_close(heard["means"][0], mean)


def rows_with_gaps(rank: int, share: float) -> list[torch.Tensor]:
    """Two matrices with the same zero rows; every process has other ones."""
    kept = torch.rand(40, 1, generator=torch.Generator().manual_seed(10 + rank)) < share
    return [randn(40, width, seed=rank + width) * kept for width in (3, 6)]


def average_rows(here: World, share: float) -> list[torch.Tensor]:
    matrices = rows_with_gaps(here.rank, share)
    dist.mean_rows_(matrices)
    return matrices


@pytest.mark.parametrize("share", [0.0, 0.1, 0.95], ids=["none", "sparse", "dense"])
def test_means_of_rows_are_means(share):
    parts = [rows_with_gaps(rank, share) for rank in range(2)]
    expected = [(one + other) / 2 for one, other in zip(*parts, strict=True)]
    for found in in_ranks(average_rows, share):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def part_for(sender: int, receiver: int) -> list[torch.Tensor]:
    shapes = [[(2, 3), (2, 1)], [(2, 4)], []][receiver]
    return [torch.full(shape, 10.0 * sender + receiver) for shape in shapes]


def swap(here: World) -> list[list[torch.Tensor]]:
    return dist.exchange([part_for(here.rank, receiver) for receiver in range(here.size)])


@pytest.mark.slow
def test_everyone_gets_what_was_meant_for_them():
    for receiver, received in enumerate(in_ranks(swap, size=3)):
        for sender, part in enumerate(received):
            expected = part_for(sender, receiver)
            assert len(part) == len(expected)
            assert all(torch.equal(a, b) for a, b in zip(part, expected, strict=True))


def leave_early(here: World) -> str:
    if here.rank == 1:
        return "left"
    try:
        for _ in range(100):
            dist.barrier()
    except PeerLost as error:
        return str(error)
    return "did not notice"


def test_one_who_is_gone_is_noticed():
    first, second = in_ranks(leave_early)
    assert second == "left"
    assert first.startswith("another process of the run has ended or cannot be reached")


def test_alone_nothing_is_said():
    x = torch.arange(3.0)
    assert dist.gather("a") == ["a"]
    assert dist.largest(3) == 3
    assert dist.mean(0.5) == 0.5
    assert dist.summed(x) is x
    dist.mean_([x])
    dist.mean_rows_([x.view(3, 1)])
    dist.broadcast_([x])
    assert x.tolist() == [0.0, 1.0, 2.0]
    assert torch.equal(dist.exchange([[x]])[0][0], x)
    with dist.joined() as here:
        assert here == World(0, 1)
