"""What a training run costs from end to end: tokens/s, where the time goes, and memory.

    python benchmarks/train.py [--gpt2] [--steps N] [--json] [group=choice] [field=value] ...

Takes the same overrides as train.py. With --gpt2 the model is one of GPT-2 small's shape with
random weights, read at the input of its 12 blocks, each by an SAE of 24,576 latents, k 32, 2,048
rows a step: the setting that peers are measured in (benchmarks/peers). Nothing is saved.

The floor is one float32 encoder product per site at the run's own shapes, measured in the same
process: no step in exact float32 can be faster. The memory that has to be is parameters (those of
the model and of the SAEs), optimiser, buffer, and one batch of working space: its activations, one
site's pre-activations and gradients, and a pass of the model waiting to go into the buffer.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import hydra
import torch

from sae_kit.config import from_node, provenance
from sae_kit.jobs.run_folder import plain
from sae_kit.jobs.train_saes import TrainSAEs, build_trainer
from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.hooks import torch_dtype
from sae_kit.models.pretrained import LanguageModel, load_model
from sae_kit.timing import Stopwatch
from sae_kit.train.allocator import keep_freed_memory
from sae_kit.train.trainer import Trainer

N_WARMUP, N_FLOOR = 2, 3
SAE_PARTS = ("SAE forward", "SAE backward", "optimiser")

GPT2_SETTING = (
    "sae.d_sae=24576",
    "sae.k=32",
    "activations.buffer_rows=16384",
    "trainer.batch_rows=2048",
    "trainer.n_tokens=100000000",
)


def random_gpt2(config: TrainSAEs) -> LanguageModel:
    """GPT-2 small's shape, random weights; it is fed the demo tokenizer's tokens."""
    model = GPT2(GPT2Config()).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.02, generator=generator)
    model = model.to(torch_dtype(config.model.dtype))
    return LanguageModel(model, load_model("demo").tokenizer, "random GPT-2 small", None, False)


def encoder_products(widths: list[int], d_sae: int, n_rows: int) -> float:
    """Seconds of one encoder product per site: the fastest of several."""
    times = []
    pairs = {d: (torch.randn(n_rows, d), torch.randn(d_sae, d)) for d in set(widths)}
    for _ in range(N_FLOOR):
        start = time.perf_counter()
        for d in widths:
            torch.nn.functional.linear(*pairs[d])
        times.append(time.perf_counter() - start)
    return min(times)


def rss(kind: str) -> int:
    """Bytes of memory this process holds (VmRSS) or has held at most (VmHWM)."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split(f"{kind}:")[1].split()[0])
    except (OSError, IndexError):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def needed_memory(trainer: Trainer, lm: LanguageModel, config: TrainSAEs) -> int:
    """Bytes that have to be held at once; see the module's docstring."""

    def n_bytes(module: torch.nn.Module) -> int:
        return sum(p.numel() * p.element_size() for p in module.parameters())

    saes = [n_bytes(sae) for sae in trainer.saes.values()]
    rows, widths = config.trainer.batch_rows, trainer.source.widths
    waiting = getattr(config.activations, "contexts_per_pass", 0) * config.data.context_size
    buffered = getattr(config.activations, "buffer_rows", 0) + waiting + rows
    working = max(saes) + 4 * rows * config.sae.d_sae
    return n_bytes(lm.model) + 3 * sum(saes) + 4 * buffered * sum(widths.values()) + working


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpt2", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options, overrides = parser.parse_known_args()
    keep_freed_memory()
    bare = rss("VmRSS")
    conf = Path(__file__).resolve().parent.parent / "conf"
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        chosen = [*(GPT2_SETTING if options.gpt2 else ()), *overrides]
        config = from_node(TrainSAEs, plain(hydra.compose("train", overrides=chosen)))
    lm = random_gpt2(config) if options.gpt2 else config.model.build()
    stopwatch = Stopwatch()
    trainer = build_trainer(config, lm, stopwatch)
    sites = list(trainer.saes)
    trainer.initialise()
    for step in range(N_WARMUP):
        trainer.step(step, measure=False)
    settled = rss("VmRSS")
    stopwatch.seconds.clear()
    start = time.perf_counter()
    for step in range(N_WARMUP, N_WARMUP + options.steps):
        trainer.step(step, measure=False)
    seconds = (time.perf_counter() - start) / options.steps
    peak, grown = rss("VmHWM") - bare, rss("VmRSS") - settled
    rows, widths = config.trainer.batch_rows, [trainer.source.widths[site] for site in sites]
    floor = encoder_products(widths, config.sae.d_sae, rows)
    parts = {part: total / options.steps for part, total in stopwatch.seconds.items()}
    rest = seconds - sum(parts.get(part, 0.0) for part in ("model forward", *SAE_PARTS))
    report = {
        "tokens_per_s": rows / seconds,
        "floor_s": floor,
        "ratios": {
            "whole step": seconds / floor,
            **{part: spent / floor for part, spent in parts.items()},
        },
        "share_neither_model_nor_sae": rest / seconds,
        "peak_gb": peak / 1e9,
        "peak_to_needed": peak / needed_memory(trainer, lm, config),
        "grown_mb": grown / 1e6,
        "shapes": {
            "model": lm.name,
            "sites": len(sites),
            "rows": rows,
            "d_in": widths[0],
            "d_sae": config.sae.d_sae,
            "steps": options.steps,
            "threads": torch.get_num_threads(),
        },
    }
    show(report, as_json=options.json)


def show(report: dict, *, as_json: bool) -> None:
    """Print the figures as a table, or as one JSON object a line."""
    if as_json:
        common = {key: value for key, value in report.items() if key != "ratios"}
        versions = provenance()["versions"]
        for name, ratio in report["ratios"].items():
            line = {"name": name, "ratio": ratio, "to": "encoder products", **common}
            print(json.dumps({**line, "versions": versions}))
        return
    print(", ".join(f"{key} {value}" for key, value in report["shapes"].items()))
    print(f"{report['tokens_per_s']:,.0f} tokens/s; encoder products {report['floor_s']:.3f} s")
    for name, ratio in sorted(report["ratios"].items(), key=lambda item: -item[1]):
        print(f"{name:<16}{ratio:>7.2f} x the encoder products")
    print(f"neither model nor SAE arithmetic: {report['share_neither_model_nor_sae']:.1%}")
    print(
        f"peak memory {report['peak_gb']:.2f} GB, {report['peak_to_needed']:.2f} x what has to be; "
        f"grown by {report['grown_mb']:.0f} MB over the steps"
    )


if __name__ == "__main__":
    main()
