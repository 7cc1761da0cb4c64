"""What one training step of each architecture costs, as multiples of one encoder product.

    python benchmarks/step.py [--d-in 768 --d-sae 24576 --rows 2048 --k 32] [--archs topk relu ...]
                              [--peers FILE.jsonl ...] [--json]

A step is forward pass, loss, gradients, projection, clipping, fused Adam, and decoder norms, in
float32 on fixed rows; "screened" lets bfloat16 propose the latents. "dead" has two in a hundred
latents dead, so that the auxiliary loss is part of the step. The product (`x @ W_enc`, PyTorch's
own) is timed in the same process, in turn with the steps; a figure is the ratio of the fastest
runs.

ReLU-like architectures start with half of their latents active. Their thresholds are moved here
so that k latents are active in a row, as in most of a real run.

A file of --peers has what benchmarks/peers wrote on the same machine: their steps stand beside
ours as multiples of the product timed in their own process.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from fastest import fastest
from torch import Tensor

from sae_kit.config import from_node, provenance
from sae_kit.sae import SAE, Moment, SAEConfig, SparseCode
from sae_kit.train.allocator import keep_freed_memory

N_RUNS = 5
DEAD_SHARE = 0.02
CLIP_NORM = 1.0
AT = Moment(1000, 2000)


def build(arch: str, options: argparse.Namespace, x: Tensor) -> SAE:
    """An SAE of which about k latents are active in each of the rows."""
    known = SAEConfig.variants()[arch].__dataclass_fields__
    fields = {"arch": arch, "d_sae": options.d_sae}
    fields |= {name: options.k for name in ("k", "target_l0") if name in known}
    config = from_node(SAEConfig, fields)
    sae = config.build(options.d_in, generator=torch.Generator().manual_seed(0))
    sae.init_from(x, x)
    with torch.no_grad():
        # As many pre-activations above the thresholds as a trained SAE has.
        pre = (x[:256] - sae.b_dec) @ sae.W_enc + sae.b_enc
        pre -= sae.weights().get("threshold", torch.zeros(())).relu()
        sae.b_enc -= pre.flatten().topk(256 * options.k).values[-1]
    return sae


def stepper(sae: SAE, x: Tensor, dead: Tensor) -> Callable[[], None]:
    """One training step, as the trainer takes it."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        out = sae.forward_train(x, AT)
        sae.losses(x, x, out, at=AT, dead=dead).total.backward()
        sae.after_backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        sae.after_step()

    return step


def mean_l0(sae: SAE, x: Tensor) -> float:
    """Active latents a row in the training pass."""
    code = sae.forward_train(x[:256], AT).code
    l0 = code.l0() if isinstance(code, SparseCode) else (code != 0).sum(-1)
    return float(l0.double().mean())


def measure(options: argparse.Namespace) -> Iterator[dict]:
    """One line per way of training each architecture."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(options.rows, options.d_in, generator=generator)
    nobody = torch.zeros(options.d_sae, dtype=torch.bool)
    some = torch.rand(options.d_sae, generator=generator) < DEAD_SHARE
    for arch in options.archs or SAEConfig.variants():
        screens = (False, True) if build(arch, options, x).screens else (False,)
        for screened in screens:
            for dead in (nobody, some):
                sae = build(arch, options, x)
                sae.screened = screened
                take = stepper(sae, x, dead)
                take()
                step, product = fastest(take, lambda sae=sae: x @ sae.W_enc, n_runs=N_RUNS)
                words = [arch, *["screened"] * screened, *["dead"] * bool(dead.any())]
                yield {
                    "name": ", ".join(words),
                    "ratio": step / product,
                    "l0": mean_l0(sae, x),
                    "seconds_per_step": step,
                    "floor_seconds": product,
                }


def peers(files: list[Path]) -> Iterator[dict]:
    """The lines that peers' drivers wrote."""
    for file in files:
        for line in file.read_text().splitlines():
            row = json.loads(line)
            yield {**row, "ratio": row["seconds_per_step"] / row["floor_seconds"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    for name, default in (("d-in", 768), ("d-sae", 24576), ("rows", 2048), ("k", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--archs", nargs="*")
    parser.add_argument("--peers", nargs="*", type=Path, default=[])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    shapes = {name: getattr(options, name) for name in ("d_in", "d_sae", "rows", "k")}
    shapes["threads"] = torch.get_num_threads()
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in shapes.items()))
    for row in (*measure(options), *peers(options.peers)):
        if options.json:
            line = {**row, "to": "encoder product", "shapes": row.get("shapes", shapes)}
            print(json.dumps({"versions": provenance()["versions"], **line}), flush=True)
        else:
            l0 = f"   L0 {row['l0']:.0f}" if "l0" in row else ""
            print(f"{row['name']:<36}{row['ratio']:>7.2f} x one encoder product{l0}", flush=True)


if __name__ == "__main__":
    main()
