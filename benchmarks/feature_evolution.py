"""What comparing the latents of two sites costs, as the text and the dictionaries grow.

    python benchmarks/feature_evolution.py [--positions 100000 1000000] [--d-sae 6144 24576]
                                           [--active 50] [--dense-latents 128] [--json]

Random sparse codes of two sites: `active` draws a position, latents by Zipf's law (exponent 0.8),
decoder rows of 768 numbers. Each size is a process of its own, so that its peak memory is its own.
`compare` is what eval=feature_evolution does of every pair of sites: seven measures of all pairs,
the matches kept (sae_kit.evals.evolution.cooccurrence).

Beside it, what a toolkit without sparse codes computes: the dense product over positions of one of
the two matrices of sums that the measures need (activations; the other is of yes-or-no activity).
Of a block of `dense-latents` upstream latents with all downstream ones it is run here, in float32,
4,096 positions at a time; the whole is that times the number of blocks, doubled for the second
matrix, with nothing for the measures.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from scipy.sparse import csr_array

from sae_kit.config import provenance
from sae_kit.evals.evolution.activity import Activity, Threshold
from sae_kit.evals.evolution.cooccurrence import Keep, compare

WIDTH = 768
DENSE_POSITIONS = 4096
N_SITES = 12  # GPT-2 small's, of which 11 pairs


def codes(n_positions: int, d_sae: int, n_active: int, seed: int) -> csr_array:
    """Random activity; latents' frequencies by Zipf's law, in an order of their own."""
    draw = np.random.default_rng(seed)
    share = 1 / np.arange(1, d_sae + 1) ** 0.8
    ends = np.cumsum(share / share.sum())
    name = draw.permutation(d_sae).astype(np.int32)
    latent = np.empty((n_positions, n_active), dtype=np.int32)
    for rows in np.array_split(latent, -(-n_positions // 65_536)):
        # Of equals only one stays; a position then has a little fewer.
        rank = np.searchsorted(ends, draw.random(rows.shape, dtype=np.float32))
        rows[:] = np.sort(name[np.minimum(rank, d_sae - 1)], axis=1)
    first = np.ones(latent.shape, dtype=bool)
    first[:, 1:] = latent[:, 1:] != latent[:, :-1]
    ends = np.concatenate([[0], first.sum(1).cumsum()])
    values = draw.random(int(ends[-1]), dtype=np.float32) + 0.1
    return csr_array((values, latent[first], ends), shape=(n_positions, d_sae))


def dense_seconds(up: csr_array, down: csr_array, n_latents: int) -> float:
    """One dense product over all positions, of some upstream latents with all downstream ones."""
    block, seconds = up[:, :n_latents].tocsr(), 0.0
    total = torch.zeros(n_latents, down.shape[1])
    for start in range(0, down.shape[0], DENSE_POSITIONS):
        rows = slice(start, start + DENSE_POSITIONS)
        a = torch.from_numpy(block[rows].toarray()).float()
        b = torch.from_numpy(down[rows].toarray()).float()
        begun = time.perf_counter()
        total.addmm_(a.T, b)
        seconds += time.perf_counter() - begun
    return seconds


def measure(n_positions: int, d_sae: int, n_active: int, n_dense: int) -> dict[str, float]:
    """One size, in this process."""
    up, down = (codes(n_positions, d_sae, n_active, seed) for seed in (0, 1))
    decoders = torch.randn(2, d_sae, WIDTH, generator=torch.Generator().manual_seed(0)).unbind()
    begun = time.perf_counter()
    sides = [Activity.of(side, Threshold(relative=0.2)) for side in (up, down)]
    pairs = compare(sides[0], sides[1], (decoders[0], decoders[1]), Keep(least=0.3))
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    block = dense_seconds(up, down, n_dense)
    return {
        "positions": n_positions,
        "d_sae": d_sae,
        "seconds": seconds,
        "peak_gib": peak,
        "n_kept": len(pairs.index),
        "dense_seconds": 2 * block * d_sae / n_dense,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--positions", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--d-sae", type=int, nargs="+", default=[6144, 24_576])
    parser.add_argument("--active", type=int, default=50)
    parser.add_argument("--dense-latents", type=int, default=128)
    parser.add_argument("--json", action="store_true", help="print JSON lines only")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        sizes = args.positions[0], args.d_sae[0], args.active, args.dense_latents
        print(json.dumps(measure(*sizes)))
        return
    if args.json:
        print(json.dumps(provenance()))
    else:
        print(f"{args.active} active latents a position, threads {torch.get_num_threads()}")
    for n in args.positions:
        for d_sae in args.d_sae:
            own = ["--here", "--positions", str(n), "--d-sae", str(d_sae)]
            own += ["--active", str(args.active), "--dense-latents", str(args.dense_latents)]
            run = subprocess.run(
                [sys.executable, __file__, *own], capture_output=True, text=True, check=True
            )
            found = json.loads(run.stdout)
            print(run.stdout.strip() if args.json else line(found), flush=True)


def line(found: dict[str, float]) -> str:
    """One size, in words."""
    ratio = found["dense_seconds"] / found["seconds"]
    return (
        f"{found['positions']:>9,} positions, 2 x {found['d_sae']:>6,} latents: "
        f"{found['seconds']:7.1f} s, peak {found['peak_gib']:4.1f} GiB; "
        f"{N_SITES} sites {found['seconds'] * (N_SITES - 1) / 60:5.1f} min; "
        f"dense {found['dense_seconds'] / 60:7.1f} min a pair, {ratio:5.0f} x"
    )


if __name__ == "__main__":
    main()
