"""A graph between layers."""

import torch
from matplotlib.collections import LineCollection

from sae_kit.viz.layered_graph import layered_graph


def drawn(first: torch.Tensor, second: torch.Tensor):
    sizes = (first.shape[1], first.shape[0], second.shape[0])
    return layered_graph(
        [first, second],
        layers=("a", "b", "c"),
        groups=[[0] * sizes[0], [1] * sizes[1], [-1] * sizes[2]],
        names=[[f"n{i}" for i in range(size)] for size in sizes],
        group_names=("one", "two"),
        title="t",
    ).axes[0]


def test_nodes_without_edges_are_left_out_and_wide_lines_are_strong_edges():
    first, second = torch.zeros(2, 3), torch.zeros(4, 2)
    first[1, 2], first[1, 0], second[3, 1] = 4.0, 1.0, 2.0
    ax = drawn(first, second)
    assert {text.get_text() for text in ax.texts} == {"n0", "n2", "n1", "n3"}
    lines = [c for c in ax.collections if isinstance(c, LineCollection)]
    widths = [width for c in lines for width in c.get_linewidths()]
    assert len(widths) == 3
    assert sorted(widths) == [widths[0], widths[2], widths[1]]
    # Edges end at the nodes.
    places = {
        (line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if len(line.get_xdata())
    }
    assert {tuple(end) for c in lines for path in c.get_segments() for end in path} <= places


def test_a_graph_without_edges_has_axes():
    ax = drawn(torch.zeros(2, 3), torch.zeros(4, 2))
    assert ax.get_xlabel()
    assert not ax.texts
