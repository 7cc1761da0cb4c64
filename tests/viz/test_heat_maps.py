"""Maps of signed values."""

import math

import pytest

from sae_kit.viz.heat_maps import Map, maps, symmetric


def draw(values: list[list[float]], *, most: float = 1.0, columns: list[str] | None = None) -> Map:
    columns = columns or [str(i) for i in range(len(values[0]))]
    rows = [str(i) for i in range(len(values))]
    return Map("m", values, columns, rows, "head", "block", most)


def test_colours_are_symmetric_about_zero() -> None:
    assert symmetric([0.2, -1.5, math.nan, 1.0]) == 1.5
    assert symmetric([0.0, math.nan]) == 1.0
    figure = maps([draw([[0.5, -1.0]], most=2.0)], n_columns=1, unit="score", title="t")
    assert figure.axes[0].images[0].get_clim() == (-2.0, 2.0)
    assert figure.axes[1].get_xlabel() == "score"


def test_cells_say_what_is_in_them_unless_it_is_small_or_missing() -> None:
    values = [[0.5, 0.01], [math.nan, -1.25]]
    ax = maps([draw(values, most=1.25)], n_columns=1, unit="score", title="t").axes[0]
    written = {
        (round(t.get_position()[0]), round(t.get_position()[1])): t.get_text() for t in ax.texts
    }
    assert written == {(0, 0): ".50", (1, 1): "-1.25"}


@pytest.mark.parametrize(("names", "rotation"), [(["0", "1"], 0.0), (["Yesterday", "end"], 90.0)])
def test_long_names_stand_upright(names: list[str], rotation: float) -> None:
    ax = maps([draw([[0.1, 0.2]], columns=names)], n_columns=1, unit="score", title="t").axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == names
    assert {tick.get_rotation() for tick in ax.get_xticklabels()} == {rotation}


def test_maps_with_very_many_cells_have_no_numbers() -> None:
    ax = maps([draw([[1.0] * 50] * 9)], n_columns=1, unit="score", title="t").axes[0]
    assert not ax.texts
