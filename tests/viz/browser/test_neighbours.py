import pytest
import torch
import toy_results

from sae_kit.viz.browser.atlas import Atlas, Pair
from sae_kit.viz.browser.neighbours import DOWN, UP, Neighbours, best_of_latents, strongest

LABELS = [[[site * 100 + latent] for latent in range(70)] for site in range(3)]


def test_neighbours_of_both_sides_with_every_measure():
    atlas = Atlas([toy_results.evolution()])
    up, down = (Neighbours(atlas, 1, way, LABELS) for way in (UP, DOWN))
    assert [row[:4] for row in up.of(5)] == [[0, 5, [5], 6], [0, 4, [4], 75]]
    assert [row[:4] for row in down.of(5)] == [[2, 5, [205], 6], [2, 6, [206], 76]]
    assert up.of(5)[0][4:] == pytest.approx([0.9 - 0.01 * i for i in range(7)])
    assert [row[1] for row in up.of(0)] == [0]
    assert Neighbours(atlas, 0, UP, LABELS).of(5) == []


def test_the_strongest_by_every_measure_come_in_turn():
    latent = torch.tensor([0, 0, 0, 0, 1])
    measures = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9], [0.5, 0.5]])
    assert strongest(latent, measures, 2).tolist() == [0, 3, 4]
    assert strongest(latent, measures, 9).tolist() == [0, 3, 1, 2, 4]
    assert strongest(latent[:0], measures[:0], 2).tolist() == []


def test_the_best_of_each_latent():
    index = torch.tensor([[0, 1], [0, 2], [2, 1]])
    pair = Pair((0, 1), index, torch.ones(3).long(), torch.tensor([[0.1], [0.4], [0.3]]))
    assert best_of_latents(pair, 0, 4)[:, 0].tolist() == pytest.approx([0.4, 0, 0.3, 0])
    assert best_of_latents(pair, 1, 3)[:, 0].tolist() == pytest.approx([0, 0.3, 0.4])
