"""What a TopK run will need: memory, time and disk, from its sizes and the machine's two speeds.

    python benchmarks/plan.py --model gpt2-xl --d-sae 51200 --tokens 1e9 --processes 8 \
        --flops 40e12 --bandwidth 2.5e12
    python benchmarks/plan.py --measure          # this machine's two speeds

The formulas are in docs/large_runs.md, with how they compare with measured runs.
"""

import argparse
import time
from dataclasses import dataclass

import torch

from sae_kit.models.gpt2 import GPT2Config
from sae_kit.products import linear

MODELS = {
    "demo": GPT2Config(n_layer=6, n_head=8, d_model=256, d_mlp=1024, n_ctx=256, n_vocab=4096),
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, d_model=1024, d_mlp=4096),
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, d_model=1280, d_mlp=5120),
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, d_model=1600, d_mlp=6400),
}

# What is moved in a step, in values of 4 bytes, and so takes the memory's time. Counted in the
# code, except for the last, which is fitted to a profile of the demo run (docs/large_runs.md).
PER_MODEL_VALUE = 35  # of each block's stream: norms 4, attention 8, hidden layer 16, sums 7
PER_WEIGHT = 17  # gradients 3, their norm and its clipping 3, fused Adam 7, the decoder's norms 4
PER_ACTIVE_VALUE = 7  # of the decoder and encoder rows of active latents: decode 2, gradients 5
PER_PRE_ACTIVATION = 2  # written and looked at once
PER_ROW_VALUE = 12  # of the SAE's input: centring, reconstruction, error and their gradients
PER_ACTIVE = 600  # finding one active latent costs as much time as moving so many values


@dataclass(frozen=True)
class Plan:
    """What a run needs in each process, with sites spread over the processes."""

    memory: float  # bytes
    step_seconds: float
    model_share: float
    tokens_per_s: float
    hours: float
    checkpoint: float  # bytes, all processes together


def plan(options: argparse.Namespace) -> Plan:
    """The formulas of docs/large_runs.md."""
    model = MODELS[options.model]
    d, n, rows = model.d_model, options.d_sae, options.rows
    sites = -(-model.n_layer // options.processes)
    block = 4 * d * d + 2 * d * model.d_mlp
    embeddings = (model.n_vocab + model.n_ctx) * d
    saes = 3 * 4 * sites * 2 * d * n
    buffer = 4 * options.buffer_rows * sites * d
    working = 4 * 2 * d * n + 3 * 4 * rows * sites * d + (1 << 25)
    memory = 4 * (model.n_layer * block + embeddings) + saes + buffer + working
    # The model is run up to the input of its last block, each process for its share of the rows.
    operations = 2 * block + 4 * options.context_size * d
    model_seconds = rows * (model.n_layer - 1) / options.processes
    model_seconds *= operations / options.flops + 4 * PER_MODEL_VALUE * d / options.bandwidth
    moved = (
        PER_WEIGHT * 2 * d * n
        + PER_ACTIVE_VALUE * rows * options.k * d
        + PER_PRE_ACTIVATION * rows * n
        + PER_ROW_VALUE * rows * d
        + PER_ACTIVE * rows * options.k
    )
    per_site = 2 * rows * d * n / options.flops + 4 * moved / options.bandwidth
    step = model_seconds + sites * per_site
    return Plan(
        memory=memory,
        step_seconds=step,
        model_share=model_seconds / step,
        tokens_per_s=rows / step,
        hours=options.tokens / rows * step / 3600,
        checkpoint=options.processes * (saes + buffer),
    )


def measure() -> tuple[float, float]:
    """This machine's float32 products in FLOP/s, and its memory's bytes/s."""
    x, weight = torch.randn(2048, 768), torch.randn(24576, 768)
    product = _fastest(lambda: linear(x, weight))
    a, b = torch.zeros(1 << 26), torch.ones(1 << 26)
    copied = _fastest(lambda: a.copy_(b))
    return 2 * 2048 * 768 * 24576 / product, 2 * 4 * (1 << 26) / copied


def _fastest(run) -> float:
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Print the plan."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=MODELS, default="gpt2")
    parser.add_argument("--d-sae", type=int, default=24576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--rows", type=int, default=2048, help="positions a step")
    parser.add_argument("--context-size", type=int, default=256, help="positions a context")
    parser.add_argument("--buffer-rows", type=int, default=65536)
    parser.add_argument("--tokens", type=float, default=300e6)
    parser.add_argument("--processes", type=int, default=1, help="that the sites are spread over")
    parser.add_argument("--flops", type=float, default=375e9, help="float32 products, per second")
    parser.add_argument("--bandwidth", type=float, default=40e9, help="memory, bytes per second")
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    if options.measure:
        options.flops, options.bandwidth = measure()
        print(f"--flops {options.flops:.3g} --bandwidth {options.bandwidth:.3g}")
    found = plan(options)
    print(f"memory per process  {found.memory / 1e9:10.1f} GB")
    print(f"one step            {found.step_seconds:10.3f} s, {found.model_share:.0%} the model")
    print(f"tokens/s            {found.tokens_per_s:10,.0f}")
    print(f"the whole run       {found.hours:10,.1f} h")
    print(f"one checkpoint      {found.checkpoint / 1e9:10.1f} GB")


if __name__ == "__main__":
    main()
