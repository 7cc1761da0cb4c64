"""The feature browser at full size: how long its build takes, and how long its pages.

    python benchmarks/browser.py FOLDER [--sites 12 --d-sae 24576 --contexts 8192 --latents 60]
                                        [--keep-site] [--json]

Random results of the forms and sizes that GPT-2 small has (12 sites of 24,576 latents, 1 M tokens,
16 rows for each latent and pair of sites, tokens drawn by Zipf's law) are built into FOLDER/site;
then a headless Chromium opens it from the folder. Every time is from the navigation (or the change
of the address) until the page is drawn and painted. "cold" pages open in a new browser; latents are
drawn at random, each from a shard not loaded before. The graph is timed until it has reached the
first and the last site, or found no further neighbour.

Memory is the most that the building process held, the results included.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sae_kit.config import provenance
from sae_kit.result import Result
from sae_kit.viz.browser.atlas import MEASURES
from sae_kit.viz.browser.build import build

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from chromium import chromium, missing, open_page

N_POS, N_VOCAB, N_TOP, N_SAMPLES, WINDOW = 128, 50_257, 10, 16, 25
PER_LATENT = 16  # rows of a pair of sites for each of its latents
N_COLD = 5  # browsers started for the first page
LOOK = 1.0  # seconds that a reader looks at the overview, in which the vocabulary is loaded

# Calls back with the milliseconds from a change of the address until the page is painted.
VISIT = """
const [address, done] = arguments, start = performance.now();
(function look() {
  if (document.documentElement.dataset.ready === address) {
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
  } else requestAnimationFrame(look);
})();
location.hash = address;
"""
# And until the graph on it has not grown for a fifth of a second.
SETTLE = """
const [done] = arguments;
let seen = -1, since = performance.now();
const start = performance.now();
(function look() {
  const now = document.querySelectorAll(".node").length;
  if (now !== seen) { seen = now; since = performance.now(); }
  if (performance.now() - since > 200) done(since - start);
  else requestAnimationFrame(look);
})();
"""
FIRST = "return performance.getEntriesByName('drawn')[0].startTime"


class Synthetic:
    """Results of the sizes asked for."""

    def __init__(self, n_sites: int, d_sae: int, n_contexts: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.sites = [f"blocks.{i}.hook_resid_pre" for i in range(n_sites)]
        self.d_sae, self.n_contexts = d_sae, n_contexts
        saes = {site: {"arch": "topk", "d_sae": d_sae} for site in self.sites}
        tokens = {"kind": "openwebtext", "context_size": N_POS}
        self.subject = {"model": "gpt2", "saes": saes, "tokens": tokens, "seed": 0}

    def dashboard(self) -> Result:
        """Of random contexts."""
        zipf = 1 / torch.arange(1, N_VOCAB + 1)
        contexts = torch.multinomial(
            zipf, self.n_contexts * N_POS, replacement=True, generator=self.generator
        )
        texts = [f" {token:x}".encode() for token in range(N_VOCAB)]
        arrays: dict[str, Tensor] = {
            "contexts": contexts.view(-1, N_POS).int(),
            "vocabulary": torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8),
            "vocabulary_ends": torch.tensor([len(text) for text in texts]).cumsum(0),
        }
        for site in self.sites:
            arrays |= self._latents(site)
        rows = [
            {"site": site, "l0": 32.0, "writes": site, "neuronpedia": ""} for site in self.sites
        ]
        n_positions = self.n_contexts * (N_POS - 1)
        return Result(
            "dashboard",
            {"n_tokens": self.n_contexts * N_POS, "n_positions": n_positions},
            rows,
            arrays,
            {"subject": self.subject, "evaluation": {"n_before": 16}},
        )

    def _latents(self, site: str) -> dict[str, Tensor]:
        n, g = self.d_sae, self.generator
        counts = (2000 * torch.rand(n, 32, generator=g) ** 6).long()
        counts[:, 24:] = 0
        kept = {}
        for kind, m in (("top", N_TOP), ("sample", N_SAMPLES)):
            place = torch.randint(self.n_contexts * N_POS, (n, m), generator=g).int()
            acts = torch.rand(n, m, WINDOW, generator=g).half()
            acts[torch.rand(acts.shape, generator=g) < 0.85] = 0  # mostly the latent is silent
            acts[..., 16] = 4 + torch.rand(n, m, generator=g).half()
            kept |= {f"{kind}_place/{site}": place, f"{kind}_acts/{site}": acts}
        tokens = {
            name: torch.randint(N_VOCAB, (n, 10), generator=g).int()
            for name in ("promoted", "suppressed")
        }
        by = torch.rand(n, 10, generator=g).sort(descending=True).values
        return {
            **kept,
            f"n_active/{site}": counts.sum(1),
            f"max/{site}": torch.full((n,), 6.0),
            f"mean/{site}": torch.rand(n, generator=g),
            f"histogram/{site}": counts,
            f"bin_width/{site}": torch.full((n,), 0.25),
            f"decoder_index/{site}": torch.randint(n, (n, 8), generator=g).int(),
            f"decoder_cosine/{site}": torch.rand(n, 8, generator=g),
            **{f"logits_{name}/{site}": ids for name, ids in tokens.items()},
            f"logits_promoted_by/{site}": by,
            f"logits_suppressed_by/{site}": -by,
        }

    def evolution(self) -> Result:
        """Of random pairs; communities of 12 latents."""
        arrays: dict[str, Tensor] = {}
        n, g = self.d_sae, self.generator
        up = torch.arange(n).repeat_interleave(PER_LATENT)
        for a, b in pairwise(self.sites):
            name = f"pairs/{a}>{b}"
            down = (up + torch.randint(n // 8, up.shape, generator=g)) % n
            arrays[f"{name}/index"] = torch.stack([up, down], 1)
            arrays[f"{name}/n_both"] = torch.randint(1, 5000, up.shape, generator=g)
            for measure in MEASURES:
                arrays[f"{name}/{measure}"] = torch.rand(up.shape, generator=g) ** 2
            trios = torch.randint(n, (200, 3), generator=g)
            arrays[f"boolean/{a}>{b}/index"] = trios
            arrays[f"boolean/{a}>{b}/kind"] = trios[:, 0] % 2
            arrays[f"boolean/{a}>{b}/strict"] = trios[:, 1] % 2 == 0
        for site in self.sites:
            arrays[f"n_active/{site}"] = torch.full((n,), 100)
            arrays[f"max/{site}"] = torch.full((n,), 6.0)
            arrays[f"community/{site}"] = torch.arange(n) // 12
        return Result(
            "feature_evolution", {"n_tokens": 1 << 20}, (), arrays, {"subject": self.subject}
        )


def held_mb() -> float:
    """MiB that this process has held at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def size_mb(folder: Path) -> tuple[float, int]:
    """MiB and number of the files in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) / 2**20, len(files)


def summary(times_ms: list[float]) -> dict[str, float]:
    """Median and largest, in seconds."""
    return {"median_s": median(times_ms) / 1000, "max_s": max(times_ms) / 1000, "n": len(times_ms)}


def time_pages(site: Path, sites: list[str], d_sae: int, n_latents: int) -> dict[str, Any]:
    """Times of first pages and of pages opened from there."""

    def cold(address: str) -> list[float]:
        times = []
        for _ in range(N_COLD):
            with chromium() as driver:
                open_page(driver, site, address)
                times.append(driver.execute_script(FIRST))
        return times

    draw = random.Random(0)
    numbers = draw.sample(range(len(sites) * d_sae // 32), n_latents)  # of shards
    latents = [f"#{sites[n * 32 // d_sae]}/{n * 32 % d_sae + draw.randrange(32)}" for n in numbers]
    found: dict[str, Any] = {
        "first page, cold": summary(cold("")),
        "a latent's page, cold": summary(cold(latents[0])),
    }
    with chromium() as driver:
        open_page(driver, site)
        time.sleep(LOOK)

        def visit(
            addresses: list[str], after: Callable[[], float] = lambda: 0.0
        ) -> dict[str, float]:
            return summary([driver.execute_async_script(VISIT, one) + after() for one in addresses])

        found["a latent's page"] = visit(latents)
        settled = lambda: driver.execute_async_script(SETTLE)  # noqa: E731
        found["a latent's page, its graph grown"] = visit(latents[:20][::-1], settled)
        found["a site's list of all latents"] = visit([f"#{one}" for one in sites])
        found["a community"] = visit([f"#community/{33 * i % (d_sae // 12)}" for i in range(20)])
        found["a search"] = visit([f"#search/{i}" for i in range(100, 110)])
        found["a context"] = visit([f"#context/{17 * i}/3" for i in range(20)])
    return found


def main() -> None:
    """Build, open, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sites", type=int, default=12)
    parser.add_argument("--d-sae", type=int, default=24_576)
    parser.add_argument("--contexts", type=int, default=8_192)
    parser.add_argument("--latents", type=int, default=60)
    parser.add_argument("--keep-site", action="store_true", help="time the site that is there")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    site, made = asked.folder / "site", Synthetic(asked.sites, asked.d_sae, asked.contexts)
    found: dict[str, Any] = {}
    if not asked.keep_site:
        results = [made.dashboard(), made.evolution()]
        arrays = [array for result in results for array in result.arrays.values()]
        found["results_mb"] = sum(array.nbytes for array in arrays) / 2**20
        start = time.perf_counter()
        build(results, site)
        found["build_s"] = time.perf_counter() - start
        found["build_mb"] = held_mb()
    found["site_mb"], found["site_files"] = size_mb(site)
    if why := missing():
        print(f"pages are not timed: {why}", file=sys.stderr)
    else:
        found |= time_pages(site, made.sites, asked.d_sae, asked.latents)
    if asked.json:
        print(json.dumps({**found, "provenance": provenance()}, indent=2))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            times = f"{value['median_s']:.3f} s, at most {value['max_s']:.3f} s"
            print(f"{name:36} {times} ({value['n']})")
        else:
            print(f"{name:36} {value:,.0f}")


if __name__ == "__main__":
    main()
