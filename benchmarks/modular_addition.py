"""How few directions and edges a network needs that adds modulo a prime, in three bases.

    python benchmarks/modular_addition.py OUT                             # prime 23: two minutes
    python benchmarks/modular_addition.py OUT --addition p113 --seeds 0 1 2 3 4   # the paper's

For each seed train.py trains a transformer of one layer on a part of all pairs of numbers
(conf/addition/), in a folder below OUT; one that is there already is gone on with. Then, for
neurons, principal components and the Local Interaction Basis, fitted on the pairs it saw:

- accuracy on the other pairs with only the k most important directions of a node layer kept
- the fewest of the strongest edges between two node layers that cost at most 0.1 % of accuracy
- Fourier frequencies of the directions, and clusters of the graph that LIB's edges make

The edges needed are printed beside those that Bushnaq et al. 2024 (2405.10928) published for prime
113 (from the authors' stored results, mean of seeds 0 to 4). Figures are of the first seed.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from train_py import command

from sae_kit.evals.basis.dissection import Dissection
from sae_kit.evals.basis.fourier import frequency_shares
from sae_kit.evals.basis.interaction_graph import described
from sae_kit.evals.basis.node_network import of_modules
from sae_kit.evals.shared.communities import Leiden
from sae_kit.jobs.train_addition import trained_addition
from sae_kit.models.modular_addition import NODE_LAYERS, all_pairs
from sae_kit.train.modular_addition import AdditionTask, accuracy_on
from sae_kit.viz.interactions import clustered_graph, kept_accuracy, needed_edges

LOSS_OF_ACCURACY = 1e-3
BATCH = 512
KEPT = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 24, 28, 34, 40, 48, 56, 64, 96, 128)
RESOLUTION = 1.0  # of Leiden; at 0.5, as in the paper's figure, all of prime 23 is one cluster

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "embeddings": {"LIB": 86.6, "PCA": 117.4},
    "after attention": {"LIB": 74.0, "PCA": 85.2},
    "after MLP": {"LIB": 634.0, "PCA": 663.0},
}
"""Edges needed from a node layer to the next: prime 113, mean of five seeds."""


def main() -> None:
    """Parse the command line, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="for networks, figures and results")
    parser.add_argument("--addition", default="p23", help="one of conf/addition/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", action="store_true", help="an object a line, not a table")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in asked.seeds:
        trained, n_steps = trained_addition(train(asked.out, asked.addition, seed))
        own, figures = measure(trained, n_steps=n_steps, draw=seed == asked.seeds[0])
        rows += [{"prime": trained.config.model.prime, "seed": seed, **row} for row in own]
        for name, figure in figures.items():
            figure.savefig(asked.out / f"{name}.png", dpi=200)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (asked.out / "rows.jsonl").write_text(lines, encoding="utf-8")
    print(lines if asked.json else table(rows))


def train(out: Path, addition: str, seed: int) -> Path:
    """The folder of a finished run; what train.py says goes to standard error."""
    folder = out / f"{addition}_seed_{seed}"
    overrides = ["--config-name=addition", f"addition={addition}", f"addition.seed={seed}"]
    subprocess.run(command(folder, overrides), check=True, stdout=sys.stderr)
    return folder


def measure(
    trained: AdditionTask, *, n_steps: int, draw: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of one network, and figures of it if asked for."""
    model, prime = trained.model.double().requires_grad_(False), trained.config.model.prime
    network = of_modules(list(model.sections), NODE_LAYERS)
    answers = trained.heldout.sum(1) % prime
    inputs = model.embed(trained.train), model.embed(trained.heldout)
    dissection = Dissection(network, *inputs, answers, batch=BATCH)
    rows: list[dict[str, Any]] = [
        {
            "kind": "network",
            "n_steps": n_steps,
            "accuracy_train": accuracy_on(model, trained.train),
            "accuracy_heldout": dissection.base,
        },
        *dissection.kept(KEPT),
    ]
    for basis in dissection.bases:
        found, graph = dissection.edges(basis, cost=LOSS_OF_ACCURACY)
        rows += found
    # The last basis is LIB.
    frequency = frequencies(dissection, model.embed(all_pairs(prime)), prime)
    partition = graph.clusters(Leiden(resolution=RESOLUTION), seed=0)
    clusters = list(described(partition, frequency))
    rows += clusters
    if not draw:
        return rows, {}
    return rows, {
        "kept": kept_accuracy(
            of(rows, "kept"),
            n_tested=len(answers),
            chance=1 / prime,
            title=f"Sums modulo {prime} on held-out pairs (bands: standard error)",
        ),
        "edges": needed_edges(
            of(rows, "edges"),
            title=f"Edges that keep the sums modulo {prime} "
            f"within {LOSS_OF_ACCURACY:.1%} of accuracy",
        ),
        "graph": clustered_graph(
            graph.weights,
            partition.community,
            layers=NODE_LAYERS,
            labels=frequency,
            cluster_names=[f"frequency {row['label']} ({row['purity']:.0%})" for row in clusters],
            title=f"Interactions modulo {prime}: clusters, with their commonest frequency",
        ),
    }


def frequencies(dissection: Dissection, x: Tensor, prime: int) -> Tensor:
    """Of every direction of LIB, layer after layer: the one that most of its variance is at."""
    found = []
    for basis, acts in zip(dissection.bases["LIB"], dissection.network.activations(x), strict=True):
        shares = frequency_shares(basis.coordinates(acts).unflatten(0, (prime, prime)))
        found.append(1 + shares.argmax(1))
    return torch.cat(found)


def of(rows: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Those of one kind."""
    return [row for row in rows if row["kind"] == kind]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Edges needed by layer and basis: means over seeds, beside the paper's."""
    networks = [row for row in rows if row["kind"] == "network"]
    prime = rows[0]["prime"]
    lines = [
        f"prime {prime}, {len(networks)} seeds; held-out accuracy "
        + ", ".join(f"{row['accuracy_heldout']:.4f}" for row in networks),
        "",
        f"{'edges needed from':20}{'neurons':>10}{'PCA':>10}{'LIB':>10}"
        f"{'paper PCA':>12}{'paper LIB':>12}   (paper: prime 113)",
    ]
    for site, published in PUBLISHED.items():
        means = []
        for basis in ("neurons", "PCA", "LIB"):
            own = [
                row["n_needed"]
                for row in rows
                if (row["kind"], row.get("site"), row.get("basis")) == ("edges", site, basis)
            ]
            means.append(sum(own) / len(own))
        numbers = "".join(f"{mean:10.1f}" for mean in means)
        lines.append(f"{site:20}{numbers}{published['PCA']:12.1f}{published['LIB']:12.1f}")
    lines += ["", "cluster of LIB's graph   directions   commonest frequency   share of directions"]
    lines += [
        f"seed {row['seed']}, {row['cluster']:<16}{row['n_directions']:>10}{row['label']:>18}"
        f"{row['purity']:>22.2f}"
        for row in rows
        if row["kind"] == "cluster"
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
