"""The script that takes networks apart which add, on a tiny prime: what it writes, and that it
hangs together.
"""

import json
import runpy
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sae_kit.config import to_dict
from sae_kit.models.modular_addition import NODE_LAYERS, AdditionConfig
from sae_kit.train.loop import Loop
from sae_kit.train.modular_addition import AdditionTask, AdditionTraining

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "modular_addition.py"


def tiny_run(out: Path, addition: str, seed: int) -> Path:
    """A run folder like those that train.py leaves, of a smaller network."""
    config = AdditionTraining(
        model=AdditionConfig(prime=5, d_model=8, n_head=2, d_mlp=16),
        train_fraction=0.6,
        n_steps=100,
        lr=5e-3,
        seed=seed,
    )
    folder, task = out / f"{addition}_{seed}", AdditionTask(config)
    Loop(task, task.plan(), folder=folder, loggers=[]).run()
    values = {"task": "addition", "addition": to_dict(config), "logger": {"kind": "none"}}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, str]:
    """The folder of figures and rows of two seeds, and what is printed."""
    out = tmp_path_factory.mktemp("addition")
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)  # as when it is started
        main = runpy.run_path(str(SCRIPT))["main"]
        patch.setitem(main.__globals__, "train", tiny_run)
        patch.setitem(main.__globals__, "print", printed.append)
        patch.setattr("sys.argv", [str(SCRIPT), str(out), "--seeds", "0", "1"])
        main()
    return out, "\n".join(printed)


@pytest.fixture(scope="module")
def rows(written) -> list[dict]:
    return [json.loads(line) for line in (written[0] / "rows.jsonl").read_text().splitlines()]


def of(rows: list[dict], kind: str, **where) -> list[dict]:
    found = [row for row in rows if row["kind"] == kind]
    return [row for row in found if all(row[key] == value for key, value in where.items())]


def test_figures_are_there(written):
    assert {path.name for path in written[0].iterdir() if path.is_file()} == {
        "kept.png", "edges.png", "graph.png", "rows.jsonl"
    }  # fmt: skip


def test_every_basis_of_every_layer_and_seed_has_its_rows(rows):
    assert [row["seed"] for row in of(rows, "network")] == [0, 1]
    assert [row["n_steps"] for row in of(rows, "network")] == [100, 100]
    for site in NODE_LAYERS[:-1]:
        for basis in ("neurons", "PCA", "LIB"):
            for seed in (0, 1):
                (edge,) = of(rows, "edges", site=site, basis=basis, seed=seed)
                assert 0 <= edge["n_needed"] <= edge["n_edges"]
                assert of(rows, "kept", site=site, basis=basis, seed=seed)


def test_all_neurons_kept_is_the_network_itself(rows):
    for network in of(rows, "network"):
        for row in of(rows, "kept", basis="neurons", k=8, seed=network["seed"]):
            assert row["accuracy"] == pytest.approx(network["accuracy_heldout"])


def test_the_table_has_the_means_over_seeds(written, rows):
    edges = of(rows, "edges", site="embeddings", basis="PCA")
    mean = sum(row["n_needed"] for row in edges) / 2
    line = next(line for line in written[1].splitlines() if line.startswith("embeddings"))
    assert float(line.split()[2]) == pytest.approx(mean, abs=0.05)
    assert "prime 5, 2 seeds" in written[1]


def test_clusters_are_named_by_frequencies_there_are(rows):
    for row in of(rows, "cluster"):
        assert row["label"] in (1, 2)  # (5 - 1) / 2 of them
        assert 0 < row["purity"] <= 1
