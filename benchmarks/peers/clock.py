"""Times of the peers' steps and runs beside the floor, as one JSON object a line.

The floor is one exact float32 x @ W_enc of the same shape (one per site in a run) in the same
process. Both it and a step count by the fastest of several, since the machine may be shared.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

N_WARMUP, N_FLOOR = 1, 5
# Peers print, some when they are imported: standard output is kept for the drivers' own lines.
_LINES, sys.stdout = sys.stdout, sys.stderr


def emit(line: dict) -> None:
    """Print one JSON object on a line of its own."""
    print(json.dumps(line), file=_LINES, flush=True)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of the packages that a figure depends on."""
    return {name: version(name) for name in (*packages, "torch")}


def fastest(call: Callable[[], object], n: int) -> float:
    """Seconds of the fastest of n calls."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def encoder_product(rows: int, d_in: int, d_sae: int) -> float:
    """Seconds of one exact float32 x @ W_enc, which no exact step can do without."""
    torch.set_float32_matmul_precision("highest")  # a peer may have lowered it
    x, W_enc = torch.randn(rows, d_in), torch.randn(d_in, d_sae)
    return fastest(lambda: x @ W_enc, N_FLOOR)


def random_rows(options: argparse.Namespace) -> Tensor:
    """The rows [rows d_in] of every timed step."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(options.rows, options.d_in, generator=generator)


def time_step(
    name: str, options: argparse.Namespace, step: Callable[[Tensor], object], packages: list[str]
) -> None:
    """Time `step(x)` on random rows and print its line."""
    x = random_rows(options)
    for _ in range(N_WARMUP):
        step(x)
    report_step(name, options, fastest(lambda: step(x), options.steps), packages)


def report_step(
    name: str, options: argparse.Namespace, seconds: float, packages: list[str]
) -> None:
    """Print the line of one timed step, the floor measured beside it."""
    floor = encoder_product(options.rows, options.d_in, options.d_sae)
    _report(
        name,
        {"seconds_per_step": seconds, "floor_seconds": floor, "ratio": seconds / floor},
        _shapes(options, "rows", "d_in", "d_sae", "k", "dead", "steps"),
        packages,
    )


def report_run(
    name: str,
    options: argparse.Namespace,
    stamps: Sequence[float],
    bare_gb: float,
    packages: list[str],
) -> None:
    """Print the line of a run, from the times at which its steps began and the last one ended.

    `bare_gb` is what the process held before there was a model: resident("VmRSS").
    """
    peak_gb = resident("VmHWM")
    timed = stamps[N_WARMUP:]
    seconds = (timed[-1] - timed[0]) / (len(timed) - 1)
    floor = options.layers * encoder_product(options.rows, 768, options.d_sae)
    figures = {
        "tokens_per_s": options.rows / seconds,
        "seconds_per_step": seconds,
        "floor_seconds": floor,
        "ratio": seconds / floor,
        "peak_gb": peak_gb,
        "bare_gb": bare_gb,
    }
    shapes = _shapes(options, "layers", "rows", "context_size", "d_sae", "k", "steps")
    _report(name, figures, shapes, packages)


def resident(kind: str) -> float:
    """GB of memory this process holds (VmRSS) or has held at most (VmHWM). Linux only."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{kind}:")[1].split()[0]) / 1e9


def _shapes(options: argparse.Namespace, *names: str) -> dict[str, float]:
    chosen = {name: getattr(options, name) for name in names}
    return chosen | {"threads": torch.get_num_threads()}


def _report(name: str, figures: dict, shapes: dict, packages: list[str]) -> None:
    rounded = {key: round(value, 4) for key, value in figures.items()}
    # A load well above the threads says that other processes shared the cores.
    load = {"load": round(os.getloadavg()[0], 2)}
    origin = {"versions": versions(packages), "date": time.strftime("%Y-%m-%d"), **load}
    emit({"name": name, **rounded, "shapes": shapes, **origin})
