"""Pictures with marked points: pixels and marks stand where they are said to."""

import pytest
import torch

from sae_kit.viz.images import Picture, pictures

MARKS = {"A": (0.0, 0.0), "B": (1.0, 2.0)}


def draw(*panels: Picture, scale: str = "nearness"):
    figure = pictures(panels, n_columns=2, labels=("alpha", "beta"), scale=scale, title="t")
    figure.draw_without_rendering()
    return figure


def picture(*shape: int) -> Picture:
    pixels = torch.linspace(0, 1, torch.Size(shape).numel()).view(shape)
    return Picture("one", pixels, (0.0, 1.0), (0.0, 2.0), MARKS)


def test_the_middles_of_the_outer_pixels_lie_at_the_ends():
    ax, _ = draw(picture(5, 3)).axes
    assert ax.images[0].get_extent() == pytest.approx((-0.25, 1.25, -0.25, 2.25))
    assert ax.get_xlim() == pytest.approx((-0.25, 1.25))
    assert ax.get_ylim() == pytest.approx((-0.25, 2.25))


def test_the_first_row_is_the_lowest():
    image = draw(picture(5, 3)).axes[0].images[0]
    assert image.origin == "lower"
    assert image.get_array()[0].tolist() == pytest.approx([0.0, 1 / 14, 2 / 14])


def test_marks_stand_at_their_points_with_their_letters():
    ax, _ = draw(picture(5, 3)).axes
    assert {text.get_text(): text.xy for text in ax.texts} == MARKS
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines] == [*MARKS.values()]
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("one", "alpha", "beta")


def test_shades_are_explained_by_a_bar_and_colours_are_not():
    *_, bar = draw(picture(5, 3), picture(5, 3, 3)).axes
    assert bar.get_xlabel() == "nearness"
    assert bar.get_ylim() == (0.0, 1.0)
    assert len(draw(picture(5, 3, 3)).axes) == 1
