"""What torch.compile makes of the model pass that feeds training.

    python benchmarks/compile.py [--contexts 8 --positions 128] [--json]

GPT-2 small's shape, random weights, the inputs of all 12 blocks captured. "ours" multiplies by
`sae_kit.products`; the compiler cannot see into that, so what is compiled multiplies by
torch.nn.functional.linear, and is shown beside the same without the compiler. Fastest of several
runs each, in one process.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from fastest import fastest
from torch import Tensor

from sae_kit.config import provenance
from sae_kit.models import gpt2
from sae_kit.models.gpt2 import GPT2, GPT2Config

N_RUNS = 5


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds a pass by each way, and seconds that compiling takes."""
    model = GPT2(GPT2Config(), generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    sites = [f"blocks.{i}.hook_resid_pre" for i in range(model.config.n_layer)]
    tokens = torch.randint(50257, (options.contexts, options.positions))

    def acts(tokens: Tensor) -> dict[str, Tensor]:
        return model.run(tokens, capture=sites, stop=sites[-1]).acts

    (ours,) = fastest(lambda: acts(tokens), n_runs=N_RUNS)
    gpt2.linear = F.linear
    compiled = torch.compile(acts)
    start = time.perf_counter()
    compiled(tokens)
    compiling = time.perf_counter() - start
    plain, after = fastest(lambda: acts(tokens), lambda: compiled(tokens), n_runs=N_RUNS)
    return {"ours": ours, "torch": plain, "compiling": compiling, "compiled": after}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--contexts", type=int, default=8)
    parser.add_argument("--positions", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seconds = measure(options)
    if options.json:
        print(json.dumps({"seconds": seconds, "versions": provenance()["versions"]}))
        return
    for name, value in seconds.items():
        print(f"{name:<12}{value:8.2f} s{value / seconds['ours']:8.2f} x ours")


if __name__ == "__main__":
    main()
