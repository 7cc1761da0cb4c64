"""What one perturbed activation costs, against a full forward pass with hooks for each.

    python benchmarks/perturbation.py [--layer 6 --context 128 --prompts 4 --points 256]
                                      [--memory-mb 512] [--peers FILE.jsonl ...] [--json]

The shape is GPT-2 small's, the weights are random. At the last position of every prompt, the
residual stream is perturbed along random directions, and the L2 distance of the last residual
stream and the KL of the predictions are recorded: by the engine (`evals.perturb.perturbation`), and
by running the whole context with an edit at the site, some points in a batch, which is what a loop
over hooks does (the clean run, once a prompt, is not counted; the engine's is). "all positions"
perturbs every position of the context at once.

The figure is seconds a point by full passes over seconds a point by the engine, each the fastest
of several runs; and how far the two ways' responses lie apart at most, relative to the largest. The
memory is what the process held above what it held before, at its most.

A file of --peers has what benchmarks/peers/transformer_lens_driver.py wrote on the same machine.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from fastest import fastest
from torch import Tensor

from sae_kit.config import provenance
from sae_kit.evals.perturb.hosts import Hosts, Place
from sae_kit.evals.perturb.paths import Fixed
from sae_kit.evals.perturb.perturbation import Curves, Probe, respond
from sae_kit.evals.perturb.responses import KL, L2, Outcome
from sae_kit.evals.shared.kept import Part
from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.hooks import Edit

N_RUNS = 3
BATCH = 8
"""Contexts in a full pass; more are no faster on a processor."""
READ = "blocks.11.hook_resid_post"


def resident_mb(kind: str) -> float:
    """MiB that this process holds (VmRSS) or has held at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) / 1024


class Experiment:
    """Random perturbations of random prompts, by both ways."""

    def __init__(self, options: argparse.Namespace, position: int | None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = GPT2(GPT2Config(), generator=generator).requires_grad_(False)
        size = (options.prompts, options.context)
        self.tokens = torch.randint(50257, size, generator=generator)
        self.place = Place(write=f"blocks.{options.layer}.hook_resid_pre", position=position)
        n_pos = 1 if position is not None else options.context
        self.n_points = options.points if position is not None else max(1, options.points // 32)
        shape = (options.prompts, self.n_points, n_pos, 768)
        self.deltas = torch.randn(shape, generator=generator)
        self.memory_mb = options.memory_mb

    def by_engine(self) -> Curves:
        """The responses of all points."""

        def probes(hosts: Hosts) -> dict[str, Probe]:
            path = Fixed(hosts.base[:, None] + self.deltas[hosts.index])
            return {"random": Probe(path, (L2(READ), KL()))}

        settings = {"memory_mb": self.memory_mb, "kept": Part(None)}
        return respond(self.model, self.tokens, self.place, probes, **settings)

    def full_pass(self, tokens: Tensor, edit: Mapping[str, Edit]) -> Outcome:
        """What comes of whole contexts."""
        where = slice(None) if self.place.position is None else [self.place.position]
        run = self.model.run(tokens, edit=edit, capture=[READ])
        assert run.logits is not None
        return Outcome({READ: run.acts[READ][None, :, where]}, run.logits[None, :, where])

    @torch.no_grad()
    def by_full_passes(self, clean: Outcome, points: slice) -> tuple[Tensor, Tensor]:
        """L2 and KL of some points of the first prompt, each by a run of its whole context."""
        deltas = self.deltas[0, points]
        where = slice(None) if self.place.position is None else [self.place.position]

        def perturb(x: Tensor) -> Tensor:
            x = x.clone()
            x[:, where] += deltas
            return x

        tokens = self.tokens[:1].expand(len(deltas), -1)
        outcomes = clean, self.full_pass(tokens, {self.place.write: perturb})
        return L2(READ)(*outcomes)[0], KL()(*outcomes)[0]

    def measure(self) -> dict:
        """Both ways' times, how far they lie apart, and the engine's memory."""
        before = resident_mb("VmRSS")
        curves = self.by_engine()["random"]
        grown = resident_mb("VmHWM") - before
        n_points = self.n_points * len(self.tokens)
        ours = fastest(self.by_engine, n_runs=N_RUNS)[0] / n_points
        batch = slice(0, min(BATCH, self.n_points))
        clean = self.full_pass(self.tokens[:1], {})  # once a prompt; not in the time below
        l2, kl = self.by_full_passes(clean, batch)
        full = fastest(lambda: self.by_full_passes(clean, batch), n_runs=N_RUNS)[0] / len(l2)
        apart = [
            ((own - theirs).abs().max() / theirs.abs().max()).item()
            for own, theirs in ((curves["l2"][0, batch], l2), (curves["kl"][0, batch], kl))
        ]
        return {
            "ratio": full / ours,
            "seconds_per_point": ours,
            "seconds_per_full_pass": full,
            "largest_difference": max(apart),
            "grown_mb": grown,
        }


def peers(files: list[Path], ours: dict[str, float]) -> list[dict]:
    """What the drivers wrote, as multiples of our time for a point."""
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [{**line, "ratio": line["seconds_per_point"] / ours[line["name"]]} for line in lines]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    defaults = {"layer": 6, "context": 128, "prompts": 4, "points": 256, "memory-mb": 512}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peers", nargs="*", type=Path, default=[])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    shapes = {name: getattr(options, name) for name in ("layer", "context", "prompts", "points")}
    shapes |= {"memory_mb": options.memory_mb, "threads": torch.get_num_threads()}
    rows, ours = [], {}
    for name, position in (("last position", -1), ("all positions", None)):
        row = Experiment(options, position).measure()
        ours[name] = row["seconds_per_point"]
        rows.append({"name": name, "to": "sae_kit, full passes", **row})
    rows += peers(options.peers, ours)
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in shapes.items()))
    for row in rows:
        if options.json:
            line = {"shapes": shapes, "versions": provenance()["versions"], **row}
            print(json.dumps(line), flush=True)
            continue
        print(f"{row['name']:<16}{row['ratio']:>7.0f} x faster a point than {row['to']}", end="")
        if "grown_mb" in row:
            print(
                f" ({1e3 * row['seconds_per_point']:.2f} against "
                f"{1e3 * row['seconds_per_full_pass']:.0f} ms; responses differ by "
                f"{row['largest_difference']:.1e}; memory grew by {row['grown_mb']:.0f} MiB)",
                end="",
            )
        print()


if __name__ == "__main__":
    main()
