"""How fast float32 products are by `sae_kit.products` and by PyTorch's own way (MKL), here.

    python benchmarks/products.py [--json]

Shapes are those of a GPT-2 block, of an encoder, and of an encoder's gradients. The figure is ours
over PyTorch's, the fastest of several runs each, taken in turn.
"""

import argparse
import json

import torch
import torch.nn.functional as F
from fastest import fastest

from sae_kit.config import provenance
from sae_kit.products import linear

N_RUNS = 7
# name, rows, d_in, d_out, whether rows and weight are transposed views
CASES = (
    ("encoder, GPT-2 small, 24,576 latents", 2048, 768, 24576, False, False),
    ("encoder, demo model, 2,048 latents", 2048, 256, 2048, False, False),
    ("encoder's weight gradient, demo model", 2048, 2048, 256, True, True),
    ("MLP in, GPT-2 small", 2048, 768, 3072, False, True),
    ("MLP out, GPT-2 small", 2048, 3072, 768, False, True),
    ("MLP in, one position", 1, 768, 3072, False, True),
    ("logits, GPT-2 small, one context", 128, 768, 50257, False, False),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    for name, rows, d_in, d_out, *views in CASES:
        x, weight = (
            torch.randn(size[::-1]).T if is_view else torch.randn(size)
            for size, is_view in zip(((rows, d_in), (d_out, d_in)), views, strict=True)
        )
        ways = (lambda: linear(x, weight), lambda: F.linear(x, weight))  # noqa: B023
        ours, theirs = fastest(*ways, n_runs=N_RUNS)
        ratio = ours / theirs
        if as_json:
            shapes = {"rows": rows, "d_in": d_in, "d_out": d_out}
            line = {"name": name, "ratio": ratio, "to": "torch.nn.functional.linear"}
            print(json.dumps({**line, "shapes": shapes, "versions": provenance()["versions"]}))
        else:
            rate = 2 * rows * d_in * d_out / ours / 1e9
            print(f"{name:<40}{ratio:>6.2f} x torch's, {rate:>6.0f} GFLOP/s")


if __name__ == "__main__":
    main()
