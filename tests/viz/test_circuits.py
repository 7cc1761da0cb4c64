"""Figures of eval=acdc show the numbers they are given."""

import pytest
import torch

from sae_kit.result import Result
from sae_kit.viz.circuits import figures, pareto


def row(method: str, n_edges: int, kl: float, **more) -> dict:
    ends = {"kl_low": kl - 0.1, "kl_high": kl + 0.1}
    share = {"recovered": 1 - kl, "recovered_low": 0.9 - kl, "recovered_high": 1.1 - kl}
    about = {"kind": "circuit", "model": "m", "method": method, "n_edges": n_edges, "kl": kl}
    return {**about, **ends, **share, **more}


ROWS = [
    row("acdc", 3, 0.5, threshold=0.1),
    row("acdc", 9, 0.2, threshold=0.01),
    row("eap", 8, 0.4),
    row("eap", 0, 1.0),
]


@pytest.fixture
def result() -> Result:
    edge = {"kind": "edge", "sender": "embed", "receiver": "m0", "effect": 1.0}
    auc = {"kind": "auc", "model": "m", "auc_edges": 0.5, "auc_nodes": 1.0}
    curve = torch.tensor([[0.0, 0.0], [0.5, 1.0], [1.0, 1.0]])
    arrays = {f"roc/m/{w}/{kind}": curve for w in ("acdc", "eap") for kind in ("edges", "nodes")}
    arrays |= {f"m/acdc/{i}/costs": torch.tensor([0.1, 0.2, 0.2 + i]) for i in range(2)}
    settings = {
        "task": "ioi",
        "ablation": "zero",
        "metric": "kl",
        "gradient_metric": "prob",
        "methods": ["acdc", "eap"],
        "circuit": "c.json",
    }
    return Result(
        name="acdc",
        scalars={"drawn": 1},
        rows=[*ROWS, {**auc, "method": "acdc"}, {**auc, "method": "eap"}, edge],
        arrays=arrays,
        provenance={"evaluation": settings, "subject": {"model": "m"}},
    )


@pytest.mark.slow
def test_all_are_there_and_can_be_written(result: Result, tmp_path) -> None:
    found = figures(result)
    assert set(found) == {"graph", "pareto", "steps", "roc"}
    for name, figure in found.items():
        for kind in ("png", "svg"):
            figure.savefig(tmp_path / f"{name}.{kind}", dpi=50)


def test_the_drawn_circuit_is_named(result: Result) -> None:
    assert "9 edges by acdc; recovers 80%" in figures(result)["graph"].get_suptitle()


def test_curves_go_by_the_number_of_edges_and_leave_out_none() -> None:
    figure = pareto(ROWS[::-1], title="t")
    lines = {c.get_label(): c.lines[0] for c in figure.axes[0].containers}
    assert list(lines["acdc"].get_xdata()) == [3, 9]
    assert list(lines["acdc"].get_ydata()) == [0.5, 0.2]
    assert list(lines["eap"].get_xdata()) == [8]


def test_steps_are_the_costs(result: Result) -> None:
    (ax,) = figures(result)["steps"].axes
    assert [line.get_ydata()[-1] for line in ax.lines] == pytest.approx([0.2, 1.2])


def test_stairs_have_their_area_in_the_legend(result: Result) -> None:
    edges, nodes = figures(result)["roc"].axes
    assert [text.get_text() for text in edges.get_legend().get_texts()] == [
        "acdc (0.50)",
        "eap (0.50)",
    ]
    assert nodes.get_legend().get_texts()[0].get_text() == "acdc (1.00)"


def test_equal_steps_are_one_curve(result: Result) -> None:
    result.arrays["m/acdc/1/costs"].copy_(result.arrays["m/acdc/0/costs"])
    (ax,) = figures(result)["steps"].axes
    (text,) = ax.get_legend().get_texts()
    assert text.get_text() == "threshold 0.1, 0.01: 3 edges"
