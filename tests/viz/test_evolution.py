"""evolution: what the figures of a small result show."""

import dataclasses
from itertools import pairwise

import torch

from sae_kit.result import Result
from sae_kit.viz.evolution import MEASURES, figures

UP, DOWN = "blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"
NAME = f"{UP}>{DOWN}"


def result(*, ablated: bool = True) -> Result:
    best = torch.tensor([0.2, 0.6, 0.96, 0.0], dtype=torch.float64)
    judged = torch.tensor([True, True, True, False])
    arrays = {
        f"matches/{NAME}/forward": best,
        f"matches/{NAME}/backward": best,
        f"matches/{NAME}/judged_up": judged,
        f"matches/{NAME}/judged_down": judged,
        f"community/{UP}": torch.tensor([0, 0, 1, -1]),
        f"community/{DOWN}": torch.tensor([0, 2, 1, 2]),
        f"first/{UP}": torch.tensor([0, 9, 50, -1]),
        f"first/{DOWN}": torch.tensor([0, 1, 2, 3]),
    }
    for name in MEASURES:
        arrays[f"histogram/{NAME}/{name}"] = torch.tensor([3, 2, 1, 0])
        arrays[f"bins/{name}"] = torch.tensor([0.0, 1.0])
    if ablated:
        arrays |= {
            f"ablation/{NAME}/similarity": torch.tensor([0.95, 0.05, 0.0, 0.55]),
            f"ablation/{NAME}/share_lost": torch.tensor([0.9, 0.1, 0.0, 5.0]),
            f"ablation/{NAME}/is_random": torch.tensor([False, False, True, False]),
            f"ablation/{NAME}/n_active": torch.tensor([5.0, 5.0, 5.0, 0.0]),
        }
    settings = {"measure": "pearson", "level": 0.95, "least": 0.3, "communities": "leiden"}
    return Result(
        "feature_evolution",
        {"n_positions": 100, "n_communities": 3},
        [{"up": UP, "down": DOWN, "n_up": 3, "n_down": 3}],
        arrays,
        {"evaluation": settings, "subject": {"model": "toy"}},
    )


def test_every_figure_is_there_and_the_ablations_if_there_were_any():
    names = {"similarity", "levels", "flow", "communities", "alive"}
    assert figures(result()).keys() == names | {"ablation"}
    assert figures(result(ablated=False)).keys() == names


def test_levels_start_at_nothing_and_count_judged_latents_only():
    left, _ = figures(result())["levels"].axes
    (line, _) = left.lines
    shares = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert shares[0.0] == 0
    assert shares[0.5] == 1 / 3
    assert shares[1.0] == 1


def test_similarity_has_a_panel_for_every_measure():
    axes = figures(result())["similarity"].axes
    assert [ax.get_xlabel() for ax in axes] == list(MEASURES.values())
    assert all(ax.patches[0].get_data().values.tolist() == [3, 2, 1, 0] for ax in axes)


def test_ablations_of_latents_that_were_never_active_are_left_out():
    (ax,) = figures(result())["ablation"].axes
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels[0] == "drawn at\nrandom\nn=1"
    assert labels[1].endswith("n=1")
    assert labels[6] == "0.5 to 0.6\nn=0"
    assert labels[-1] == "0.9 to 1\nn=1"


def test_communities_by_size_and_reach():
    left, right = figures(result())["communities"].axes
    assert sum(bar.get_height() for bar in left.patches) == 3
    assert [bar.get_height() for bar in right.patches] == [1, 2]


def test_alive_counts_what_has_fired():
    (ax,) = figures(result())["alive"].axes
    up, down = ax.lines
    assert (up.get_ydata()[-1], down.get_ydata()[-1]) == (0.75, 1.0)


def test_latents_that_have_fired_are_drawn_in_the_order_of_the_model(tmp_path):
    """As well of a result from disk, whose arrays are in another one."""
    sites = [f"blocks.{i}.hook_resid_pre" for i in (0, 1, 2, 10, 11)]
    rows = [{"up": up, "down": down} for up, down in pairwise(sites)]
    first = {f"first/{site}": torch.arange(4) for site in sites}
    given = result(ablated=False)
    arrays = {key: x for key, x in given.arrays.items() if not key.startswith("first/")}
    for pair in pairwise(sites):
        name = ">".join(pair)
        arrays |= {key.replace(NAME, name): x for key, x in given.arrays.items() if NAME in key}
    dataclasses.replace(given, rows=rows, arrays=arrays | first).save(tmp_path)
    (ax,) = figures(Result.load(tmp_path))["alive"].axes
    assert [line.get_label() for line in ax.lines] == ["0", "1", "2", "10", "11"]
