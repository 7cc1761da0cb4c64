"""The evaluation on a small random model: what its numbers must be."""

import pytest
import torch
import toy_subject

from sae_kit.evals.interaction_basis import LATENTS, LIB, NEURONS, PCA, InteractionBasis

SMALL = InteractionBasis(
    sites=("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"),
    n_contexts=24,
    n_test_contexts=4,
    n_edge_contexts=8,
    n_sources=2,
    kept=(1, 8, 24, 32),
    batch=8,
)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return SMALL.run(toy_subject.subject(tmp_path_factory.mktemp("text")))


def of(result, kind: str, **where) -> list[dict]:
    rows = [row for row in result.rows if row["kind"] == kind]
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def test_all_directions_kept_costs_nothing(result):
    for basis in (NEURONS, PCA):
        whole = of(result, "directions", basis=basis, k=32)
        assert len(whole) == 3
        assert all(abs(row["kl"]) < 1e-12 for row in whole)


def test_fewer_directions_cost_more(result):
    for row in of(result, "directions", k=1):
        if row["basis"] != LATENTS:
            more = of(result, "directions", site=row["site"], basis=row["basis"], k=24)
            assert row["kl"] > more[0]["kl"] >= 0


def test_an_sae_is_compared_where_there_is_one(result):
    assert {row["site"] for row in of(result, "directions", basis=LATENTS)} == {
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_resid_post",
    }


def test_few_edges_do_and_not_more_than_all(result):
    rows = of(result, "edges")
    assert [row["basis"] for row in rows] == 2 * [NEURONS, PCA, LIB]
    for row in rows:
        assert 0 <= row["n_needed"] <= row["n_edges"]
        assert row["n_edges"] == result.arrays[f"edges/{row['site']}/{row['basis']}"].numel()
    assert any(0 < row["n_needed"] < row["n_edges"] for row in rows)


def test_the_graphs_clusters_are_those_of_the_edges_that_are_needed(result):
    graphs = of(result, "graph")
    assert [row["basis"] for row in graphs] == [NEURONS, PCA, LIB]
    for row in graphs:
        needed = [edge["n_needed"] for edge in of(result, "edges", basis=row["basis"])]
        assert row["n_needed"] == sum(needed) == result.scalars[f"n_needed/{row['basis']}"]
        sizes = result.arrays[f"cluster/{row['basis']}"].bincount()
        assert row["n_clusters"] == (sizes > 1).sum()
        assert row["largest_cluster"] == sizes[0]
        assert row["n_directions"] >= sizes[sizes > 1].sum()
        assert -0.5 <= row["modularity"] <= 1.0


def test_figures_are_drawn_of_a_saved_result(result):
    figures = InteractionBasis.plot(result)
    assert set(figures) == {"directions", "edges", "modularity", "graph"}
    (ax,) = figures["graph"].axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(SMALL.sites)


def test_the_interaction_basis_has_the_largest_importance_first(result):
    importance = result.arrays[f"importance/blocks.1.hook_resid_pre/{LIB}"]
    assert (importance.diff() <= 0).all()
    assert torch.isfinite(importance).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_size": 1}, "context_size: 1"),
        ({"n_edge_contexts": 999}, "n_edge_contexts: 999 is more than"),
        ({"kept": (4, 2)}, "kept: "),
        ({"tolerance": 0.0}, "tolerance"),
        ({"batch": 0}, "batch"),
        ({"resolution": 0.0}, "resolution: 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        InteractionBasis(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_contexts": 2, "n_edge_contexts": 1}, "n_contexts: 2 contexts have 22 activ.*give 3"),
        ({"sites": "blocks.1.hook_resid_pre"}, "is one node layer"),
        ({"sites": "blocks.*.hook_mlp_out"}, "not the whole residual stream"),
        ({"n_contexts": 10**6}, "n_contexts: the held-out text has"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_subject_is_refused(change, message, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_KIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").mkdir()
    settings = {"n_test_contexts": 2, "n_edge_contexts": 1, "n_contexts": 8, **change}
    with pytest.raises(ValueError, match=message):
        InteractionBasis(**settings).run(toy_subject.subject(tmp_path / "text"))
