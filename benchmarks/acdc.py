"""What one tried edge costs in ACDC, against a full pass of the circuit for each.

    python benchmarks/acdc.py [--pairs 2 --positions 12 --vocab 50257] [--batch 16] [--json]

The shape is GPT-2 small's, the weights are random. At several levels of the whole graph (the heads
and the MLP of the last, a middle and the first block), edges are tried, from one receiver on: by
`evals.circuits.circuit_tail`, which computes what an edge can change, some versions side by side;
and by running the circuit without the edge as a whole, which is what a plain loop does.

The figure is seconds an edge by full passes over seconds an edge here, each the fastest of several
runs, and how far the two ways' costs lie apart at most. The whole run is all levels' edges at the
cost of the nearest level measured, if every edge is tried: an upper bound, since edges of dead
nodes are not. Versions run in vain come on top (n_runs less n_trials in the results of eval=acdc).
"""

import argparse
import json

import torch
from fastest import fastest

from sae_kit.config import provenance
from sae_kit.data.pairs import Pairs
from sae_kit.evals.circuits.circuit import Circuit, Graph
from sae_kit.evals.circuits.circuit_bench import KL, CircuitBench
from sae_kit.evals.circuits.circuit_tail import Tail
from sae_kit.evals.shared.ablations import CorruptedPrompt
from sae_kit.models.gpt2 import GPT2, GPT2Config

N_RUNS = 3
N_FULL = 2
"""Edges tried by full passes at each level; they all cost the same."""
RECEIVERS = ("logits", "m11", "a11.0.v", "m6", "a6.0.q", "a6.0.v", "m0", "a0.0.v")


def make_bench(options: argparse.Namespace) -> CircuitBench:
    """Random pairs in a random model."""
    generator = torch.Generator().manual_seed(0)
    config = GPT2Config(n_vocab=options.vocab, n_ctx=options.positions)
    model = GPT2(config, generator=generator).requires_grad_(False)
    size = (2, options.pairs, options.positions)
    clean, corrupt = torch.randint(options.vocab, size, generator=generator)
    answers, wrong = (torch.zeros(options.pairs, options.vocab, dtype=torch.bool) for _ in range(2))
    answers[:, 0], wrong[:, 1] = True, True
    pairs = Pairs(clean=clean, corrupt=corrupt, answers=answers, wrong=wrong, columns=())
    how = CorruptedPrompt(options.pairs, seed=0)
    return CircuitBench.of(Graph(model), pairs, how, metric=KL)


def measure(bench: CircuitBench, name: str, batch: int) -> dict:
    """Both ways' seconds an edge, from one receiver of a level on."""
    graph, full = bench.graph, Circuit.full(bench.graph)
    receiver = graph.receivers.index(name)
    level = graph.places[receiver].level
    cuts = [
        (r, sender)
        for r in range(receiver, graph.receivers_of(level).stop)
        for sender in graph.allowed[r].nonzero()[:, 0].flip(0).tolist()
    ][:batch]
    tail = Tail(bench, full, level)
    one_by_one = [full.without(cuts[0][0], [cuts[0][1]])]
    for r, sender in cuts[1:N_FULL]:
        one_by_one.append(one_by_one[-1].without(r, [sender]))
    ours, theirs = fastest(
        lambda: tail.costs(tail.without(cuts)),
        lambda: [bench.cost(one) for one in one_by_one],
        n_runs=N_RUNS,
    )
    ours, theirs = ours / len(cuts), theirs / len(one_by_one)
    costs = tail.costs(tail.without(cuts))
    apart = max(abs(bench.cost(one) - costs[i]) for i, one in enumerate(one_by_one))
    return {
        "name": name,
        "ratio": theirs / ours,
        "to": "full passes",
        "seconds_per_edge": ours,
        "seconds_per_full_pass": theirs,
        "edges_per_second": 1 / ours,
        "largest_difference": apart,
    }


def whole_run(graph: Graph, rows: list[dict]) -> tuple[float, float]:
    """Seconds for all edges of a graph by both ways, each at the cost of the nearest receiver."""
    at = {row["name"]: graph.places[graph.receivers.index(row["name"])].level for row in rows}
    ours = theirs = 0.0
    for receiver, place in enumerate(graph.places):
        n = int(graph.allowed[receiver].sum()) + int(graph.is_direct[receiver])
        kind = graph.receivers[receiver][-2:]
        alike = [r for r in rows if r["name"][-2:] == kind] or rows
        near = min(alike, key=lambda row: abs(at[row["name"]] - place.level))
        ours += n * near["seconds_per_edge"]
        theirs += n * near["seconds_per_full_pass"]
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--positions", type=int, default=12)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--batch", type=int, default=16, help="versions side by side")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    bench = make_bench(options)
    rows = [measure(bench, name, options.batch) for name in RECEIVERS]
    ours, theirs = whole_run(bench.graph, rows)
    n_edges = bench.graph.n_edges + int(bench.graph.is_direct.sum())
    rows.append(
        {
            "name": "whole graph",
            "ratio": theirs / ours,
            "to": "full passes",
            "seconds_per_edge": ours / n_edges,
            "seconds_per_full_pass": theirs / n_edges,
            "edges_per_second": n_edges / ours,
            "hours": ours / 3600,
            "hours_of_full_passes": theirs / 3600,
        }
    )
    shapes = {key: vars(options)[key] for key in ("pairs", "positions", "vocab", "batch")}
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in shapes.items()))
    for row in rows:
        if options.json:
            print(json.dumps({"shapes": shapes, "versions": provenance()["versions"], **row}))
            continue
        print(
            f"{row['name']:<12}{row['ratio']:>7.1f} x as many edges a second as {row['to']} "
            f"({row['edges_per_second']:.1f}; {1e3 * row['seconds_per_edge']:.0f} against "
            f"{1e3 * row['seconds_per_full_pass']:.0f} ms an edge)"
        )
    print(f"all {n_edges:,} edges: {ours / 3600:.1f} h, {theirs / 3600:.1f} h of full passes")


if __name__ == "__main__":
    main()
