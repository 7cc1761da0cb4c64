"""Whether screening costs quality: the same training, exact and screened, step by step.

    python benchmarks/screening.py [--seeds 0 1] [--force] [group=choice] [field=value] ...

Takes the same overrides as train.py; by default block 3 of the demo model, 1,000 steps. For every
seed two trainers see the same rows in the same order from the same weights, one with
`precision=exact`, one with `precision=screened`. Printed are the mean FVU of the last 30 % of the
steps, the FVU on held-out text, and of the latents that are active in float32 on the last batch the
share that screening leaves out.

Where the processor has no fast bfloat16, screening computes as `exact` does and there is nothing to
compare; `--force` screens all the same, slowly.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import torch

from sae_kit.config import from_node
from sae_kit.jobs.run_folder import plain
from sae_kit.jobs.train_saes import TrainSAEs, build_trainer, export, measure
from sae_kit.models.pretrained import LanguageModel
from sae_kit.products import fast_bf16
from sae_kit.sae import batch_top, ops
from sae_kit.sae.training import Moment
from sae_kit.timing import Stopwatch
from sae_kit.train.trainer import Trainer

SETTING = ("sites=blocks.3.hook_resid_pre", "trainer.n_tokens=2048000")
PRECISIONS = ("exact", "screened")


def composed(overrides: list[str]) -> TrainSAEs:
    """The config of train.py with these overrides."""
    conf = Path(__file__).resolve().parent.parent / "conf"
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        return from_node(TrainSAEs, plain(hydra.compose("train", overrides=[*SETTING, *overrides])))


def late_fvu(trainer: Trainer) -> float:
    """Train to the end; the mean FVU of the last 30 % of the steps."""
    trainer.initialise()
    n_steps = trainer.config.n_steps
    first = n_steps - max(1, int(0.3 * n_steps))
    found = []
    for step in range(n_steps):
        metrics = trainer.step(step, measure=step >= first)
        found += [float(metrics[f"{site}/FVU"]) for site in trainer.saes if step >= first]
    return sum(found) / len(found)


@torch.no_grad()
def left_out(trainer: Trainer) -> float:
    """The share of latents active by exact products that screening leaves out, on one batch."""
    ((site, sae),) = trainer.saes.items()
    x = trainer.source.sample(site, trainer.config.batch_rows)
    at = Moment(trainer.config.n_steps - 1, trainer.config.n_steps)
    active = []
    for screened in (False, True):
        sae.screened = screened
        active.append(sae.forward_train(x, at).code.dense() != 0)
    exact, proposed = active
    return float((exact & ~proposed).sum() / exact.sum())


def compare(config: TrainSAEs, lm: LanguageModel, seed: int) -> dict[str, Any]:
    """Both trainings of one seed."""
    row: dict[str, Any] = {"seed": seed}
    for precision in PRECISIONS:
        own = replace(config, trainer=replace(config.trainer, seed=seed, precision=precision))
        trainer = build_trainer(own, lm, Stopwatch())
        row[f"late_{precision}"] = late_fvu(trainer)
        if precision == "screened":
            row["left_out"] = left_out(trainer)
        with tempfile.TemporaryDirectory() as folder:
            export(own, lm, trainer, Path(folder))
            result = measure(own, lm, trainer, trainer.saes, Path(folder))
        row[f"heldout_{precision}"] = float(result.scalars["mean_fvu"])
    return row


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--force", action="store_true")
    options, overrides = parser.parse_known_args()
    if not fast_bf16(torch.device("cpu")):
        if not options.force:
            raise SystemExit("no fast bfloat16 here: screened is exact (--force screens anyway)")
        ops.fast_bf16 = batch_top.fast_bf16 = lambda _: True
    config = composed(overrides)
    lm = config.model.build()
    for seed in options.seeds:
        row = compare(config, lm, seed)
        for part in ("late", "heldout"):
            exact, screened = (row[f"{part}_{precision}"] for precision in PRECISIONS)
            found = f"{exact:.5f} exact, {screened:.5f} screened, {screened / exact - 1:+.2%}"
            print(f"seed {seed}, {part} FVU: {found}")
        print(f"seed {seed}: {row['left_out']:.2e} of the active latents were left out", flush=True)


if __name__ == "__main__":
    main()
