"""Paths: where they begin and end, how long they are, what they keep constant."""

import math

import pytest
import torch

from sae_kit.evals.perturb.paths import Arc, Fixed, Plane, Ray, Segment

ALL = slice(None)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_a_ray_has_the_lengths_asked_for_whatever_the_direction_measures():
    base, direction = draw(3, 2, 40), 100 * draw(3, 2, 40, seed=1)
    lengths = torch.tensor([0.0, 0.5, 3.0, 19.0])
    x = Ray(base, direction, lengths).at(ALL)
    assert x.shape == (3, 4, 2, 40)
    assert torch.equal(x[:, 0], base)
    norms = (x.double() - base[:, None].double()).norm(dim=-1)
    torch.testing.assert_close(norms, lengths.double()[:, None].expand(3, 4, 2), rtol=1e-5, atol=0)
    cosine = torch.cosine_similarity(x[:, 1:] - base[:, None], direction[:, None], dim=-1)
    torch.testing.assert_close(cosine, torch.ones(3, 3, 2))


def test_a_ray_without_a_direction_stays_at_its_base():
    base = draw(2, 3, 8)
    direction = draw(2, 3, 8, seed=1)
    direction[:, 0] = 0
    x = Ray(base, direction, torch.tensor([1.0, 2.0])).at(ALL)
    assert torch.equal(x[:, :, 0], base[:, None, 0].expand(2, 2, 8))
    assert (x[:, :, 1:] != base[:, None, 1:]).any(-1).all()


def test_a_segment_meets_both_ends():
    start, end = draw(2, 1, 8), draw(2, 1, 8, seed=1)
    x = Segment(start, end, torch.tensor([0.0, 0.25, 1.0])).at(ALL)
    assert torch.equal(x[:, 0], start)
    assert torch.equal(x[:, 2], end)
    torch.testing.assert_close(x[:, 1], 0.75 * start + 0.25 * end)


def test_an_arc_keeps_its_distance_from_the_centre():
    start, end, centre = (draw(3, 1, 64, seed=s, dtype=torch.float64) for s in range(3))
    centre = centre[0, 0]
    x = Arc(start, 5 * end, torch.linspace(0, 1, 11), centre).at(ALL)
    radius = (start - centre).norm(dim=-1)
    distance = (x - centre).norm(dim=-1)
    torch.testing.assert_close(distance, radius[:, None].expand(3, 11, 1), rtol=1e-12, atol=0)
    assert torch.equal(x[:, 0], start)
    toward = torch.cosine_similarity(x[:, -1] - centre, 5 * end - centre, dim=-1)
    torch.testing.assert_close(toward, torch.ones_like(toward))


def test_an_arc_between_ends_equally_far_ends_at_its_end():
    start, end = draw(2, 1, 16), draw(2, 1, 16, seed=1)
    end = end * start.norm(dim=-1, keepdim=True) / end.norm(dim=-1, keepdim=True)
    x = Arc(start, end, torch.tensor([0.0, 1.0]), torch.zeros(16)).at(ALL)
    torch.testing.assert_close(x[:, 1], end)


def test_a_plane_has_its_three_activations_where_it_says():
    a, b, c = (draw(2, 1, 16, seed=s, dtype=torch.float64) for s in range(3))
    plane = Plane(a, b, c, torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    x = plane.at(ALL)  # (0, 0), (1, 0), (0, 1), (1, 1)
    assert plane.places.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    torch.testing.assert_close(x[:, 0], a)
    torch.testing.assert_close(x[:, 1], b)
    across, up = x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]
    torch.testing.assert_close((across * up).sum(-1), torch.zeros(2, 1, dtype=torch.float64))
    torch.testing.assert_close(x[:, 0] + plane.t[..., None] * across + up, c)


@pytest.mark.parametrize(
    "path",
    [
        Ray(draw(2, 3, 8), draw(2, 3, 8, seed=1), torch.arange(7.0)),
        Segment(draw(2, 3, 8), draw(2, 3, 8, seed=1), torch.arange(7.0)),
        Arc(draw(2, 3, 8), draw(2, 3, 8, seed=1), torch.arange(7.0), draw(8, seed=2)),
        Plane(*(draw(2, 3, 8, seed=s) for s in range(3)), torch.arange(7.0), torch.arange(1.0)),
        Fixed(draw(2, 7, 3, 8)),
    ],
    ids=lambda path: type(path).__name__,
)
def test_a_path_in_pieces_is_the_whole_path(path):
    whole = path.at(ALL)
    assert whole.shape == (2, path.n_points, 3, 8)
    pieces = [path.at(slice(i, i + 3)) for i in range(0, path.n_points, 3)]
    assert torch.equal(torch.cat(pieces, 1), whole)


@pytest.mark.parametrize("values", [[], [1.0, 1.0], [2.0, 1.0], [0.0, math.nan]])
def test_lengths_that_do_not_increase_are_refused(values):
    base = draw(1, 1, 4)
    with pytest.raises(ValueError, match="lengths: "):
        Ray(base, base, torch.tensor(values))
    with pytest.raises(ValueError, match="alphas: "):
        Segment(base, base, torch.tensor(values))


def test_a_plane_through_two_equal_activations_is_refused():
    a, c = draw(1, 1, 4), draw(1, 1, 4, seed=1)
    with pytest.raises(ValueError, match="b: equals a"):
        Plane(a, a, c, torch.arange(2.0), torch.arange(2.0))
