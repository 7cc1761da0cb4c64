"""How sparse against how faithful: every architecture and objective, in one figure.

    python benchmarks/pareto.py OUT [--sweep benchmarks/pareto.yaml] [--jobs 2] [--only NAME ...]

Runs train.py once for every value of every grid in the sweep file, each in a folder below OUT; runs
that are there already are not repeated. Then writes OUT/pareto.csv and OUT/pareto.png from their
closing evaluations: L0 against FVU, the increase in cross-entropy and KL, on held-out text.
"""

import argparse
import csv
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from train_py import command

from sae_kit.result import Result
from sae_kit.viz.curves import Measure, curves

COLUMNS = ("l0", "fvu", "delta_ce", "kl", "ce_recovered", "dead_fraction")


@dataclass(frozen=True)
class Point:
    """One run of the sweep."""

    group: str
    value: Any
    overrides: tuple[str, ...]
    folder: Path

    @property
    def evaluation(self) -> Path:
        """Where the closing evaluation of the run is."""
        return self.folder / "evaluation"

    def done(self) -> bool:
        """Whether the run has ended."""
        return (self.evaluation / "result.json").is_file()


def points(sweep: Mapping[str, Any], out: Path) -> Iterator[Point]:
    """All runs that the sweep file asks for."""
    for group, grid in sweep["grids"].items():
        for value in grid["values"]:
            overrides = (*sweep["common"], *grid["choices"], f"{grid['field']}={value}")
            word = "".join(c if c.isalnum() else "-" for c in f"{group}-{value}")
            yield Point(group, value, overrides, out / word)


def train(point: Point, n_threads: int) -> None:
    """Run train.py for one point; what it says goes to the folder's log."""
    point.folder.mkdir(parents=True, exist_ok=True)
    words = command(point.folder, point.overrides)
    with open(point.folder / "log.txt", "a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads)}
        code = subprocess.run(words, stdout=log, stderr=log, env=environment).returncode
    print(f"{point.group} {point.value}: {'done' if code == 0 else f'failed, see {log.name}'}")


def rows(found: list[Point]) -> list[dict[str, Any]]:
    """One row per finished run: its group, its setting and what was measured, over its sites."""
    table = []
    for point in found:
        result = Result.load(point.evaluation)
        means = {
            column: sum(row[column] for row in result.rows) / len(result.rows) for column in COLUMNS
        }
        table.append({"group": point.group, "setting": point.value, **means})
    return table


def main() -> None:
    """Train what is missing, then draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--sweep", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", nargs="*", help="names of the grids to run and draw")
    options = parser.parse_args()
    sweep = OmegaConf.to_container(OmegaConf.load(options.sweep))
    wanted = [p for p in points(sweep, options.out) if not options.only or p.group in options.only]
    n_threads = max(1, (os.cpu_count() or 1) // options.jobs)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda p: train(p, n_threads), [p for p in wanted if not p.done()]))
    table = rows([point for point in wanted if point.done()])
    with open(options.out / "pareto.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, table[0].keys())
        writer.writeheader()
        writer.writerows(table)
    figure = curves(
        table,
        Measure("l0", "L0 (active latents)", log=True),
        [
            Measure("fvu", "FVU", log=True),
            Measure("delta_ce", "CE increase (nats per token)", log=True),
            Measure("kl", "KL(clean || spliced) (nats per token)", log=True),
        ],
        group="group",
        title="Sparsity against faithfulness, on held-out text",
    )
    figure.savefig(options.out / "pareto.png", dpi=150)
    print(json.dumps({"runs": len(table), "figure": str(options.out / "pareto.png")}))


if __name__ == "__main__":
    main()
