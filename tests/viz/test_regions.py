"""Figures of stable regions: which there are, and that they show what the result says."""

import region_results
import torch
from region_results import SITE, curves
from torch import Tensor

from sae_kit.viz.regions import figures, nearness

N = 7
PLACES = ((1, 1), (1, 5), (5, 3))
"""Where on a grid of N by N points, [beta alpha], each context gives its own output."""


def pair(number: int, kind: str, *, differ: bool):
    row = {"kind": "pair", "number": number, "pair": f"p{number}", "likeness": kind}
    r = torch.linspace(0, 1, 5)
    arrays = {f"pair/{number}/r": r, f"pair/{number}/kl": r}
    if differ:
        arrays[f"pair/{number}/logits"] = 1 - r
    return {**row, "tops_differ": differ}, arrays


def plane(number: int, model: str = "demo", i: int = 0):
    row = {"kind": "slice", "number": number, "model": model, "site": SITE, "plane": i}
    distances = torch.full((3, N, N), 4.0)
    for context, place in enumerate(PLACES):
        distances[context][place] = 0.0
    return {**row, "t": 0.5, "margin": 0.25}, {f"slice/{number}/distances": distances}


def drawn(*parts):
    return figures(region_results.result(*parts))


def lines(ax) -> list[list[float]]:
    return [list(line.get_ydata()) for line in ax.lines]


def test_there_are_figures_of_what_there_is():
    few = [curves(0, (1.0, 2.0))]
    assert set(drawn(*few)) == {"curves", "slopes", "gates"}
    more = [
        *few,
        curves(1, (1.0, 1.5), site="blocks.2.hook_resid_pre"),
        curves(2, (1.0, 1.0), model="random"),
        pair(0, "similar", differ=False),
        plane(0),
        plane(1, i=1),
    ]
    assert set(drawn(*more)) - set(drawn(*few)) == {
        "sites",
        "models",
        "pairs",
        "slice_0",
        "slice_1",
    }
    assert "slices" in drawn(*more, plane(2, "random"), plane(3, "random", 1))


def test_each_path_has_single_pairs_all_models_and_their_kl():
    parts = [
        curves(0, (1.0, 2.0, 3.0)),
        curves(1, (1.0, 2.0), path="arc"),
        curves(2, (1.0, 2.0), model="random"),
        curves(3, (1.0, 2.0), model="random", path="arc"),
        curves(4, (1.0, 2.0), site="blocks.2.hook_resid_pre"),
    ]
    figure = drawn(*parts)["curves"]
    panels = {ax.get_title(): lines(ax) for ax in figure.axes}
    assert list(panels) == [
        "demo, along the line",
        "medians, along the line",
        "KL, along the line",
        "demo, along the arc",
        "medians, along the arc",
        "KL, along the arc",
    ]
    straight = [0.0, 0.25, 0.5, 0.75, 1.0]
    # Three pairs and their median; two models and the diagonal; two models.
    assert panels["demo, along the line"] == 4 * [straight]
    assert panels["medians, along the line"] == [straight, straight, [0.0, 1.0]]
    assert panels["KL, along the line"] == 2 * [[2 * y for y in straight]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["demo", "random"]


def test_models_that_are_folders_go_by_their_last_part_if_it_is_their_own():
    def names(*models: str) -> list[str]:
        figure = drawn(*(curves(i, (1.0, 2.0), model=m) for i, m in enumerate(models)))["curves"]
        return [text.get_text() for text in figure.legends[0].get_texts()]

    assert names("runs/a/model", "random") == ["model", "random"]
    assert names("runs/a/model", "runs/b/model") == ["runs/a/model", "runs/b/model"]


def test_similar_and_dissimilar_pairs_have_panels_of_their_own():
    figure = drawn(
        curves(0, (1.0, 2.0)),
        pair(0, "similar", differ=True),
        pair(1, "dissimilar", differ=True),
        pair(2, "dissimilar", differ=False),
    )["pairs"]
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["similar endings", "dissimilar endings", "dissimilar endings: top tokens"]
    assert [len(ax.lines) for ax in figure.axes] == [1, 2, 1]
    assert lines(figure.axes[2]) == [[1.0, 0.75, 0.5, 0.25, 0.0]]


def test_nearness_is_1_where_nothing_changed_and_0_where_most_did():
    distances = torch.tensor([[[0.0, 2.0], [4.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    distances = torch.cat([distances, distances[:1]])
    near = nearness(distances)
    assert near[0].tolist() == [[1.0, 0.5], [0.0, 0.75]]
    assert near[1].tolist() == [[1.0, 1.0], [1.0, 1.0]], "nothing changes anywhere"


def pixels(ax) -> Tensor:
    return torch.tensor(ax.images[0].get_array().tolist())


def test_a_plane_is_red_green_and_blue_where_its_activations_are():
    figure = drawn(curves(0, (1.0, 2.0)), plane(0))["slice_0"]
    together = pixels(figure.axes[3])
    for i, place in enumerate(PLACES):
        assert pixels(figure.axes[i])[place] == 1.0
        assert together[place].tolist() == [float(i == j) for j in range(3)]
    marks = {text.get_text(): text.xy for text in figure.axes[0].texts}
    assert marks == {"A": (0.0, 0.0), "B": (1.0, 0.0), "C": (0.5, 1.0)}


def test_planes_of_several_models_stand_side_by_side():
    """A row for every plane, though the result has all of one model first."""
    parts = [plane(0), plane(1, i=1), plane(2, "random"), plane(3, "random", 1)]
    figure = drawn(curves(0, (1.0, 2.0)), *parts)["slices"]
    assert [ax.get_title() for ax in figure.axes] == ["demo", "random", "demo", "random"]
