"""Figures: what is drawn is what was given, with labels, and nothing global is touched."""

import ast
import math
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from sae_kit.viz import plots

SITES = [f"blocks.{i}.hook_resid_pre" for i in range(4)]


def rows(sites=SITES):
    return [
        {"site": site, "fvu": 0.1 + 0.01 * i, "fvu_low": 0.09, "fvu_high": 0.15, "l0": 16.0}
        for i, site in enumerate(sites)
    ]


def labelled(figure):
    assert isinstance(figure, Figure)
    assert all(ax.get_xlabel() for ax in figure.axes)
    return figure.axes


def ends(container):
    """The (low, high) of every error bar of a container."""
    _, _, (bars,) = container
    return [tuple(segment[:, 1]) for segment in bars.get_segments()]


# --- by site --------------------------------------------------------------------------------------


def test_by_site_draws_the_columns_with_their_intervals_where_there_are_any():
    panels = [plots.Panel("FVU", {"FVU": "fvu"}), plots.Panel("both", {"a": "fvu", "b": "l0"})]
    one, two = labelled(plots.by_site(rows(), panels, title="t"))
    assert [ax.get_ylabel() for ax in (one, two)] == ["FVU", "both"]
    (drawn,) = one.containers
    assert list(drawn[0].get_ydata()) == [row["fvu"] for row in rows()]
    for low, high in ends(drawn):
        assert (low, high) == (pytest.approx(0.09), pytest.approx(0.15))
    assert one.get_legend() is None
    assert [text.get_text() for text in two.get_legend().get_texts()] == ["a", "b"]
    assert len({line.get_color() for line in two.lines if line.get_marker() != "None"}) == 2


def test_the_baseline_is_always_in_view():
    below, above = plots.Panel("FVU", {"": "fvu"}), plots.Panel("L0", {"": "l0"}, baseline=20.0)
    one, two = labelled(plots.by_site(rows(), [below, above], title="t"))
    assert one.get_ylim()[0] <= 0 < 0.15 <= one.get_ylim()[1]
    assert two.get_ylim()[0] <= 16 < 20 <= two.get_ylim()[1]


def test_one_site_is_enough():
    figure = plots.by_site(rows(SITES[:1]), [plots.Panel("FVU", {"FVU": "fvu"})], title="t")
    figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("sites", "names", "what"),
    [
        (SITES, ["0", "1", "2", "3"], "block (site: hook_resid_pre)"),
        (["blocks.11.attn.hook_z"], ["11"], "block (site: attn.hook_z)"),
        (
            ["blocks.0.hook_resid_pre", "blocks.0.mlp.hook_post", "ln_final.hook_scale"],
            ["0.resid_pre", "0.mlp.post", "ln_final.scale"],
            "site",
        ),
        (["hook_embed"], ["embed"], "site"),
    ],
)
def test_site_labels_together_say_which_site_it_is(sites, names, what):
    assert plots.site_labels(sites) == (names, what)


# --- firing frequencies ---------------------------------------------------------------------------


def heights(ax):
    """The heights of the histogram's bars, and that of the bar of dead latents."""
    *histogram, dead = [patch.get_height() for patch in ax.patches]
    return histogram, dead


def test_every_latent_is_drawn_once_the_dead_ones_apart():
    alive = torch.tensor([1.0, 0.5, 0.1, 1e-2, 1e-2, 1e-5])
    one = torch.cat([alive, torch.zeros(7)]).double()
    figure = plots.firing_frequencies({"a": one, "b": one[:6]}, dense=0.1, title="t")
    first, second = labelled(figure)
    for ax, n_dead in ((first, 7), (second, 0)):
        histogram, dead = heights(ax)
        assert sum(histogram) == len(alive)
        assert dead == n_dead
    left = min(patch.get_x() for patch in first.patches[:-1])
    assert first.patches[-1].get_x() + first.patches[-1].get_width() < left, "they touch"
    assert [ax.get_title() for ax in (first, second)] == ["a", "b"]
    assert math.log10(0.1) in [line.get_xdata()[0] for line in first.lines]


@pytest.mark.parametrize("frequency", [[0.0, 0.0], [1.0, 1.0]])
def test_dictionaries_all_dead_or_all_dense_can_be_drawn(frequency):
    given = {"a": torch.tensor(frequency).double()}
    plots.firing_frequencies(given, dense=0.1, title="t").draw_without_rendering()


# --- the others -----------------------------------------------------------------------------------


def test_bars_are_as_long_as_their_values_and_in_the_order_of_the_rows():
    given = [
        {"text": "docs", "value": 3.2, "low": 3.1, "high": 3.4},
        {"text": "books", "value": 4.1, "low": 4.0, "high": 4.2},
    ]
    (ax,) = labelled(plots.bars(given, name="text", unit="nats", title="t"))
    assert [patch.get_width() for patch in ax.patches] == [3.2, 4.1]
    assert ax.patches[0].get_y() > ax.patches[1].get_y(), "the first row is on top"
    assert list(ax.get_yticks()) == [1, 0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["docs", "books"]
    assert [text.get_text() for text in ax.texts] == ["3.2", "4.1"]


def test_by_position_draws_means_inside_their_bands():
    values = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double() + 5
    (ax,) = labelled(
        plots.by_position(
            {"mean": values}, first=1, labels=("position", "nats"), marks={"here": 3.0}, title="t"
        )
    )
    curve = ax.lines[0]
    assert list(curve.get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert list(curve.get_ydata()) == pytest.approx(values.mean(0).tolist())
    band = ax.collections[0].get_paths()[0].get_extents()
    assert band.y0 < values.mean(0).min()
    assert band.y1 > values.mean(0).max()
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"mean", "here"}


def test_a_histogram_counts_every_value():
    values = torch.linspace(-1, 3, 101).double()
    (ax,) = labelled(plots.histogram(values, label="x", unit_name="prompts", title="t"))
    assert sum(patch.get_height() for patch in ax.patches) == 101
    assert ax.get_ylabel() == "prompts"
    assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx([0.0, 1.0])


# --- the style ------------------------------------------------------------------------------------


def test_a_long_title_stays_inside_the_figure():
    figure, _ = plots.grid(1, n_columns=1, title="many words in a title " * 8)
    figure.draw_without_rendering()
    (title,) = [text for text in figure.texts if "many words" in text.get_text()]
    box = title.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_every_line_of_a_panel_has_a_colour_and_a_marker_of_its_own():
    assert len(set(plots.PALETTE)) == len(set(plots.MARKERS)) == 7


def test_pyplot_whose_state_is_global_is_not_imported():
    tree = ast.parse(Path(plots.__file__).read_text(encoding="utf-8"))
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    names += [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert "matplotlib.figure.Figure" in names
    assert not [name for name in names if "pyplot" in name]


@pytest.mark.parametrize(
    ("site", "block"),
    [("blocks.0.hook_resid_pre", 0), ("blocks.10.mlp.hook_post", 10), ("hook_embed", -1)],
)
def test_the_block_of_a_site(site, block):
    assert plots.block_of(site) == block
