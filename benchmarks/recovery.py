"""Which planted features an SAE finds: ours and the peers', on the same rows, by the same measures.

    python benchmarks/recovery.py rows FOLDER        # train.safetensors, eval.safetensors
    python benchmarks/recovery.py grid FOLDER --python saelens=PATH --python sparsify=PATH ...
    python benchmarks/recovery.py table FOLDER       # one row per run that has ended

The plan (`--plan`, benchmarks/recovery.yaml) says which dictionary is planted and what is trained.
Every run sees the same rows in the same order, once: those of training split 0. Peers train in
their own environments by their drivers (benchmarks/peers), and are left out where no Python is
given. Runs that are there already are not repeated. A result file holds W_dec, codes and recon of
the evaluation rows, as benchmarks/peers/exchange.py has them; `table` scores all of them alike.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sae_kit.config import from_node
from sae_kit.data.planted import (
    BLOCK_ROWS,
    PLANTED,
    PlantedConfig,
    PlantedDictionary,
    PlantedRows,
    PlantedSource,
    PlantedStream,
)
from sae_kit.dist import World
from sae_kit.evals.recovery import Recovery, Tally
from sae_kit.result import Result
from sae_kit.sae.base import SAEConfig
from sae_kit.train.objective import LocalObjective
from sae_kit.train.trainer import Trainer, TrainerConfig

HERE = Path(__file__).resolve().parent
OURS = "sae_kit"
SEED = 0
COLUMNS = (
    "l0",
    "fvu",
    "mcc",
    "mcc_weighted",
    "found",
    "uniqueness",
    "f1",
    "f1_micro",
    "absorption",
    "dead_fraction",
)


@dataclass(frozen=True)
class Plan:
    """What benchmarks/recovery.yaml says."""

    planted: PlantedConfig
    d_sae: int
    n_steps: int
    batch_rows: int
    n_eval_rows: int
    runs: tuple[dict[str, Any], ...]

    @staticmethod
    def read(path: Path) -> "Plan":
        """The plan in a file."""
        values = OmegaConf.to_container(OmegaConf.load(path))
        planted = from_node(PlantedConfig, values.pop("planted"), where="planted")
        return Plan(planted, **{**values, "runs": tuple(values["runs"])})


@dataclass(frozen=True)
class Run:
    """One SAE to train."""

    library: str
    architecture: str
    settings: tuple[str, ...]
    """Overrides for ours (sae.k=8), options of the driver for a peer (--k 8)."""

    def file(self, folder: Path) -> Path:
        """Where its result goes."""
        words = "_".join([self.library, self.architecture, *self.settings])
        return folder / ("".join(c if c.isalnum() or c in "_.=" else "" for c in words) + ".result")


def runs(plan: Plan) -> Iterator[Run]:
    """Every run of the plan: each of `each` is one, with the settings of `all`."""
    for group in plan.runs:
        for own in group.get("each", [""]):
            settings = tuple(f"{own} {group.get('all', '')}".split())
            yield Run(group["library"], group["architecture"], settings)


def write_rows(plan: Plan, folder: Path) -> None:
    """The rows as files, for the peers."""
    dictionary = PlantedDictionary.build(plan.planted)
    for split, n_rows in (
        ("train", plan.n_steps * plan.batch_rows),
        ("heldout", plan.n_eval_rows),
    ):
        stream = PlantedStream(dictionary, split=split, seed=SEED)
        x = torch.empty(n_rows, plan.planted.d_in)
        for start in range(0, n_rows, BLOCK_ROWS):
            n = min(BLOCK_ROWS, n_rows - start)
            x[start : start + n] = stream.rows(start, n).x
        save_file({"activations": x}, folder / f"{split}.safetensors")


def train_ours(plan: Plan, run: Run, out: Path) -> None:
    """Train one of ours; write what a peer's driver would."""
    given = OmegaConf.to_container(OmegaConf.from_dotlist(list(run.settings)))
    sae_values = {"arch": run.architecture, "d_sae": plan.d_sae, **given.get("sae", {})}
    trainer_config = TrainerConfig(
        n_tokens=plan.n_steps * plan.batch_rows,
        batch_rows=plan.batch_rows,
        checkpoint_every=plan.n_steps,
        log_every=plan.n_steps,
        seed=SEED,
        **given.get("trainer", {}),
    )
    cpu, dictionary = torch.device("cpu"), PlantedDictionary.build(plan.planted)
    source = PlantedSource(
        dictionary, batch_rows=plan.batch_rows, seed=SEED, world=World(0, 1), device=cpu
    )
    sae_config = from_node(SAEConfig, sae_values, where="sae")
    trainer = Trainer(trainer_config, sae_config, LocalObjective(), source, device=cpu)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(Path(folder), [])
    print(json.dumps({"training_seconds": round(time.perf_counter() - start, 2)}))
    sae = trainer.saes[PLANTED]
    sae.fold_scales(source.scales[PLANTED], source.scales[PLANTED])
    with torch.no_grad():
        x = PlantedStream(dictionary, split="heldout", seed=SEED).rows(0, plan.n_eval_rows).x
        codes = sae.encode(x)
        tensors = {"W_dec": sae.W_dec.detach(), "codes": codes, "recon": sae.reconstruct(x, codes)}
    origin = json.dumps({"name": f"{OURS} {run.architecture}", "settings": list(run.settings)})
    save_file(tensors, out, metadata={"origin": origin})


def command(plan_file: Path, plan: Plan, run: Run, folder: Path, pythons: dict[str, str]) -> list:
    """How to start a run in a process of its own."""
    out = str(run.file(folder))
    if run.library == OURS:
        own = [sys.executable, __file__, "ours", str(folder), "--plan", str(plan_file)]
        return [*own, "--file", out]
    driver = HERE / "peers" / f"{run.library}_driver.py"
    sizes = {
        "architecture": run.architecture,
        "data": folder / "train.safetensors",
        "eval-data": folder / "heldout.safetensors",
        "out": out,
        "d-sae": plan.d_sae,
        "batch-rows": plan.batch_rows,
        "steps": plan.n_steps,
        "seed": SEED,
    }
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    return [pythons[run.library], str(driver), "train", *options, *run.settings]


def grid(plan_file: Path, plan: Plan, folder: Path, pythons: dict[str, str], n_jobs: int) -> None:
    """Train everything that is missing; what a run says goes to a log beside its result."""

    def one(run: Run) -> None:
        with open(run.file(folder).with_suffix(".log"), "w") as log:
            environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
            words = command(plan_file, plan, run, folder, pythons)
            code = subprocess.run(words, stdout=log, stderr=log, env=environment).returncode
        print(f"{run.file(folder).stem}: {'done' if code == 0 else 'failed'}", flush=True)

    missing = [
        run
        for run in runs(plan)
        if (run.library == OURS or run.library in pythons) and not run.file(folder).exists()
    ]
    with ThreadPoolExecutor(n_jobs) as pool:
        list(pool.map(one, missing))


def score(plan: Plan, file: Path) -> dict[str, float]:
    """The measures of `eval=recovery` for a result file."""
    dictionary = PlantedDictionary.build(plan.planted)
    found = load_file(file)
    tally = Tally(dictionary, found["W_dec"], carried_cosine=Recovery().carried_cosine)
    drawn = PlantedStream(dictionary, split="heldout", seed=SEED).rows(0, plan.n_eval_rows)
    for start in range(0, plan.n_eval_rows, BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        rows = PlantedRows(drawn.x[part], drawn.codes[part])
        tally.update(rows, found["codes"][part], found["recon"][part])
    return tally.summary()


def table(plan: Plan, folder: Path) -> Result:
    """One row per finished run."""
    rows, truth = [], {}
    for run in runs(plan):
        if not (file := run.file(folder)).is_file():
            continue
        with safe_open(file, "pt") as opened:
            assert "origin" in opened.metadata(), f"{file}: a result says what made it"
        summary = score(plan, file)
        truth = {key: summary[key] for key in ("true_l0", "fvu_truth")}
        name = {"library": run.library, "architecture": run.architecture}
        rows.append(
            name
            | {key: round(summary[key], 4) for key in COLUMNS}
            | {"settings": " ".join(run.settings)}
        )
    return Result(name="recovery_benchmark", scalars=truth, rows=tuple(rows))


def main() -> None:
    """Do what the command says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["rows", "ours", "grid", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plan", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--python", action="append", default=[], metavar="LIBRARY=PATH")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--file", type=Path, help="of `ours`: the result of which run to make")
    options = parser.parse_args()
    plan = Plan.read(options.plan)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.command == "rows":
        write_rows(plan, options.folder)
    elif options.command == "ours":
        (run,) = (run for run in runs(plan) if run.file(options.folder) == options.file)
        train_ours(plan, run, options.file)
    elif options.command == "grid":
        pythons = dict(given.split("=", 1) for given in options.python)
        grid(options.plan, plan, options.folder, pythons, options.jobs)
    else:
        result = table(plan, options.folder)
        result.save(options.folder / "table")
        print(result.table())
        print({name: round(value, 4) for name, value in result.scalars.items()})


if __name__ == "__main__":
    main()
