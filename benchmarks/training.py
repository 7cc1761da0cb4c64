"""What a training step costs, as multiples of the encoder products alone, and where it goes.

    python benchmarks/training.py [group=choice] [field=value] ... [--json]

Takes the same overrides as train.py. The floor is one float32 encoder product per site at the run's
own shapes, measured in the same process: no step in exact float32 can be faster. Nothing is saved.
"""

import json
import sys
import time
from pathlib import Path

import hydra
import torch

from sae_kit.config import from_node, provenance
from sae_kit.jobs.run_folder import plain
from sae_kit.jobs.train_saes import TrainSAEs, build_trainer
from sae_kit.models.hooks import match_sites
from sae_kit.timing import Stopwatch
from sae_kit.train.allocator import keep_freed_memory

N_WARMUP, N_STEPS, N_FLOOR = 5, 20, 10


def encoder_products(widths: list[int], d_sae: int, n_rows: int) -> float:
    """Seconds of one encoder product per site: the fastest of several."""
    pairs = [(torch.randn(n_rows, d), torch.randn(d_sae, d)) for d in widths]
    times = []
    for _ in range(N_FLOOR):
        start = time.perf_counter()
        for x, rows in pairs:
            torch.nn.functional.linear(x, rows)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure and print."""
    overrides = [argument for argument in sys.argv[1:] if argument != "--json"]
    keep_freed_memory()
    conf = Path(__file__).resolve().parent.parent / "conf"
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        config = from_node(TrainSAEs, plain(hydra.compose("train", overrides=overrides)))
    lm = config.model.build()
    stopwatch = Stopwatch()
    sites = match_sites(config.sites, lm.model.sites())
    trainer = build_trainer(config, lm, sites, stopwatch)
    trainer.initialise()
    for step in range(N_WARMUP):
        trainer.step(step, measure=False)
    stopwatch.seconds.clear()
    start = time.perf_counter()
    for step in range(N_WARMUP, N_WARMUP + N_STEPS):
        trainer.step(step, measure=False)
    seconds = (time.perf_counter() - start) / N_STEPS
    n_rows = config.trainer.batch_rows
    widths = list(trainer.source.widths.values())
    floor = encoder_products(widths, config.sae.d_sae, n_rows)
    figures = {"whole step": seconds / floor} | {
        part: total / N_STEPS / floor for part, total in stopwatch.seconds.items()
    }
    shapes = {"sites": len(sites), "rows": n_rows, "d_in": widths[0], "d_sae": config.sae.d_sae}
    if "--json" in sys.argv:
        versions = provenance()["versions"]
        for name, figure in figures.items():
            line = {"name": name, "ratio": figure, "to": "encoder products", "shapes": shapes}
            print(json.dumps({**line, "tokens_per_s": n_rows / seconds, "versions": versions}))
        return
    print(f"{shapes}; floor {1e3 * floor:.1f} ms; {n_rows / seconds:,.0f} tokens/s")
    for name, figure in sorted(figures.items(), key=lambda item: -item[1]):
        print(f"{name:<16}{figure:>7.2f} x the encoder products")


if __name__ == "__main__":
    main()
