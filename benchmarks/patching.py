"""What a heat map of activation patching costs, against a full hooked pass for each of its cells.

    python benchmarks/patching.py [--prompts 16 --context 16] [--full-passes 6] [--json]

The shape is GPT-2 small's, the weights are random. Prompts and their corrupted twins are random
tokens behind a BOS that they share. The residual stream is exchanged at every position before every
block and behind the last: in one loop by `evals.patches.scenes`, which starts at the cell's layer
and position, behind kept keys and values, and computes logits at the last position only; and by
running all prompts whole with an edit at the site, which is what a loop over hooks does.

Full passes are measured for some cells, spread over the map, and counted for all of them. The
figure is their seconds over those of the loop, which include the clean and the corrupted runs. The
logits of these cells are compared: how far they lie apart at most, relative to the largest.
"""

import argparse
import json
import time

import torch
from torch import Tensor

from sae_kit.config import provenance
from sae_kit.data.pairs import Column, Pairs
from sae_kit.evals.patches.scenes import Runs, Stage
from sae_kit.evals.patches.units import Residual, Units
from sae_kit.evals.shared.ablations import CorruptedPrompt
from sae_kit.models.gpt2 import GPT2, GPT2Config

Cell = tuple[int, int]
"""(number of the site, position)."""


def random_pairs(n: int, context: int, config: GPT2Config, generator: torch.Generator) -> Pairs:
    """Pairs that have nothing in common but their first token."""
    clean, corrupt = torch.randint(1, config.n_vocab, (2, n, context), generator=generator)
    clean[:, 0] = corrupt[:, 0] = 0
    no_answers = torch.zeros(n, config.n_vocab, dtype=torch.bool)
    return Pairs(
        clean=clean,
        corrupt=corrupt,
        answers=no_answers,
        wrong=no_answers,
        columns=tuple(Column(f"p{i}", torch.full((n,), i)) for i in range(context)),
    )


class HeatMap:
    """The same cells by both ways."""

    def __init__(self, options: argparse.Namespace) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = GPT2(GPT2Config(), generator=generator).requires_grad_(False)
        self.pairs = random_pairs(options.prompts, options.context, self.model.config, generator)
        self.sites: list[Units] = Residual.of(self.model, self.pairs, {})
        self.cells: list[Cell] = [
            (site, place) for site in range(len(self.sites)) for place in range(options.context)
        ]

    def by_loop(self) -> dict[Cell, Tensor]:
        """The logits of every cell."""
        stage, ablation = Stage(self.model, self.pairs), CorruptedPrompt(len(self.pairs), seed=0)
        scene = Runs.of(stage, ablation, ()).scenes(stage, ablation)["noising"]
        return {
            (site, place): logits
            for site, units in enumerate(self.sites)
            for place, logits in scene.each(units, range(len(units)))
        }

    def by_full_passes(self, cells: list[Cell]) -> dict[Cell, Tensor]:
        """The logits of some cells."""
        wanted = [units.site for units in self.sites]
        source = self.model.run(self.pairs.corrupt, capture=wanted).acts
        found = {}
        for site, place in cells:
            units = self.sites[site]

            def exchange(x: Tensor, units: Units = units, place: int = place) -> Tensor:
                return units.patched(x, source[units.site], [place])

            logits = self.model.run(self.pairs.clean, edit={units.site: exchange}).logits
            assert logits is not None
            found[site, place] = logits[:, -1]
        return found

    def measure(self, n_full_passes: int) -> dict[str, float]:
        """Both ways' times, and how far they lie apart."""
        start = time.perf_counter()
        ours = self.by_loop()
        loop = time.perf_counter() - start
        # From the middle of as many equal parts of the map.
        n = len(self.cells)
        some = [self.cells[(2 * i + 1) * n // (2 * n_full_passes)] for i in range(n_full_passes)]
        start = time.perf_counter()
        theirs = self.by_full_passes(some)
        full = (time.perf_counter() - start) / (len(some) + 1) * (n + 1)  # 1: the corrupted run
        largest = max(logits.abs().max().item() for logits in theirs.values())
        apart = max((ours[cell] - theirs[cell]).abs().max().item() for cell in some)
        return {
            "ratio": full / loop,
            "cells": n,
            "seconds": loop,
            "seconds_by_full_passes": full,
            "largest_difference": apart / largest,
        }


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    for name, default in {"prompts": 16, "context": 16, "full-passes": 6}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    shapes = {name: getattr(options, name) for name in ("prompts", "context", "full_passes")}
    shapes["threads"] = torch.get_num_threads()
    row = {"name": "residual by position", **HeatMap(options).measure(options.full_passes)}
    if options.json:
        line = {"to": "sae_kit, full passes", "shapes": shapes, **row}
        print(json.dumps({**line, "versions": provenance()["versions"]}))
        return
    print(", ".join(f"{name} {value}" for name, value in shapes.items()))
    print(
        f"{row['name']}: {row['cells']} cells in {row['seconds']:.1f} s, by full passes "
        f"{row['seconds_by_full_passes']:.1f} s: {row['ratio']:.1f} x (logits differ by "
        f"{row['largest_difference']:.1e})"
    )


if __name__ == "__main__":
    main()
