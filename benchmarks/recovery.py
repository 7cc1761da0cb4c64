"""Which planted features an SAE finds: ours and the peers', on the same rows, by the same measures.

    python benchmarks/recovery.py rows FOLDER        # for each seed: train and heldout.safetensors
    python benchmarks/recovery.py grid FOLDER --python saelens=PATH --python sparsify=PATH ...
    python benchmarks/recovery.py table FOLDER       # means over seeds, of the runs that have ended

The plan (`--plan`, benchmarks/recovery.yaml) says which dictionaries are planted and what is
trained. A seed draws the dictionary, its rows and the initial weights. All runs of a seed see the
same rows in the same order, once: those of training split 0. Peers train in their own environments
by their drivers (benchmarks/peers), and are left out where no Python is given. Runs that are there
already are not repeated. A result file holds W_dec, codes and recon of the evaluation rows, as
benchmarks/peers/exchange.py has them; `table` scores all of them alike, and keeps the scores.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
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
    seeds: tuple[int, ...]
    runs: tuple[dict[str, Any], ...]

    @staticmethod
    def read(path: Path) -> "Plan":
        """The plan in a file."""
        values = OmegaConf.to_container(OmegaConf.load(path))
        planted = from_node(PlantedConfig, values.pop("planted"), where="planted")
        lists = {name: tuple(values[name]) for name in ("seeds", "runs")}
        return Plan(planted, **{**values, **lists})

    def dictionary(self, seed: int) -> PlantedDictionary:
        """The one that a seed draws."""
        return PlantedDictionary.build(dataclasses.replace(self.planted, seed=seed))


@dataclass(frozen=True)
class Run:
    """One SAE to train."""

    library: str
    architecture: str
    settings: tuple[str, ...]
    """Overrides for ours (sae.k=8), options of the driver for a peer (--k 8)."""

    def file(self, folder: Path, seed: int) -> Path:
        """Where its result goes."""
        words = "_".join([self.library, self.architecture, *self.settings])
        name = "".join(c if c.isalnum() or c in "_.=" else "" for c in words)
        return rows_folder(folder, seed) / f"{name}.result"


def rows_folder(folder: Path, seed: int) -> Path:
    """Where the rows of a seed lie, and the results of what is trained on them."""
    return folder / f"seed{seed}"


def runs(plan: Plan) -> Iterator[Run]:
    """Every run of the plan: each of `each` is one, with the settings of `all`."""
    for group in plan.runs:
        for own in group.get("each", [""]):
            settings = tuple(f"{own} {group.get('all', '')}".split())
            yield Run(group["library"], group["architecture"], settings)


def write_rows(plan: Plan, folder: Path) -> None:
    """The rows as files, for the peers."""
    sizes = {"train": plan.n_steps * plan.batch_rows, "heldout": plan.n_eval_rows}
    for seed, (split, n_rows) in itertools.product(plan.seeds, sizes.items()):
        stream = PlantedStream(plan.dictionary(seed), split=split, seed=seed)
        x = torch.empty(n_rows, plan.planted.d_in)
        for start in range(0, n_rows, BLOCK_ROWS):
            n = min(BLOCK_ROWS, n_rows - start)
            x[start : start + n] = stream.rows(start, n).x
        rows_folder(folder, seed).mkdir(exist_ok=True)
        save_file({"activations": x}, rows_folder(folder, seed) / f"{split}.safetensors")


def train_ours(plan: Plan, run: Run, seed: int, out: Path) -> None:
    """Train one of ours; write what a peer's driver would."""
    given = OmegaConf.to_container(OmegaConf.from_dotlist(list(run.settings)))
    sae_values = {"arch": run.architecture, "d_sae": plan.d_sae, **given.get("sae", {})}
    trainer_config = TrainerConfig(
        n_tokens=plan.n_steps * plan.batch_rows,
        batch_rows=plan.batch_rows,
        checkpoint_every=plan.n_steps,
        log_every=plan.n_steps,
        seed=seed,
        **given.get("trainer", {}),
    )
    cpu, dictionary = torch.device("cpu"), plan.dictionary(seed)
    source = PlantedSource(
        dictionary, batch_rows=plan.batch_rows, seed=seed, world=World(0, 1), device=cpu
    )
    sae_config = from_node(SAEConfig, sae_values, where="sae")
    trainer = Trainer(trainer_config, sae_config, LocalObjective(), source, device=cpu)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        stopped = trainer.fit(Path(folder), [])
    if stopped:  # half a run is no result
        sys.exit(128 + stopped)
    print(json.dumps({"training_seconds": round(time.perf_counter() - start, 2)}))
    sae = trainer.saes[PLANTED]
    sae.fold_scales(source.scales[PLANTED], source.scales[PLANTED])
    with torch.no_grad():
        x = PlantedStream(dictionary, split="heldout", seed=seed).rows(0, plan.n_eval_rows).x
        codes = sae.encode(x)
        tensors = {"W_dec": sae.W_dec.detach(), "codes": codes, "recon": sae.reconstruct(x, codes)}
    origin = json.dumps({"name": f"{OURS} {run.architecture}", "settings": list(run.settings)})
    save_file(tensors, out, metadata={"origin": origin})


def command(
    plan_file: Path, plan: Plan, run: Run, seed: int, folder: Path, pythons: dict[str, str]
) -> list[str]:
    """How to start a run in a process of its own."""
    out = str(run.file(folder, seed))
    if run.library == OURS:
        own = [sys.executable, __file__, "ours", str(folder), "--plan", str(plan_file)]
        return [*own, "--file", out]
    rows, driver = rows_folder(folder, seed), HERE / "peers" / f"{run.library}_driver.py"
    sizes = {
        "architecture": run.architecture,
        "data": rows / "train.safetensors",
        "eval-data": rows / "heldout.safetensors",
        "out": out,
        "d-sae": plan.d_sae,
        "batch-rows": plan.batch_rows,
        "steps": plan.n_steps,
        "seed": seed,
    }
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    return [pythons[run.library], str(driver), "train", *options, *run.settings]


def grid(plan_file: Path, plan: Plan, folder: Path, pythons: dict[str, str], n_jobs: int) -> None:
    """Train everything that is missing; what a run says goes to a log beside its result."""

    def one(run: Run, seed: int) -> None:
        file = run.file(folder, seed)
        with open(file.with_suffix(".log"), "w") as log:
            environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
            words = command(plan_file, plan, run, seed, folder, pythons)
            code = subprocess.run(words, stdout=log, stderr=log, env=environment).returncode
        print(f"{file.parent.name} {file.stem}: {'done' if code == 0 else 'failed'}", flush=True)

    missing = [
        (run, seed)
        for run in runs(plan)
        for seed in plan.seeds
        if (run.library == OURS or run.library in pythons) and not run.file(folder, seed).exists()
    ]
    missing.sort(key=lambda one: one[1])  # a whole seed before the next
    with ThreadPoolExecutor(n_jobs) as pool:
        list(pool.map(one, *zip(*missing, strict=True)) if missing else ())


def score(plan: Plan, seed: int, file: Path) -> dict[str, float]:
    """The measures of `eval=recovery` for a result file, kept beside it."""
    kept = file.with_suffix(".score.json")
    if kept.is_file():
        return json.loads(kept.read_text())
    with safe_open(file, "pt") as opened:
        assert "origin" in opened.metadata(), f"{file}: a result says what made it"
    dictionary = plan.dictionary(seed)
    found = load_file(file)
    tally = Tally(dictionary, found["W_dec"], carried_cosine=Recovery().carried_cosine)
    drawn = PlantedStream(dictionary, split="heldout", seed=seed).rows(0, plan.n_eval_rows)
    for start in range(0, plan.n_eval_rows, BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        rows = PlantedRows(drawn.x[part], drawn.codes[part])
        tally.update(rows, found["codes"][part], found["recon"][part])
    summary = tally.summary()
    kept.write_text(json.dumps(summary))
    return summary


def table(plan: Plan, folder: Path) -> Result:
    """One row per run that has ended with some seed: means over seeds, and the spread of MCC."""
    rows, truth = [], {}
    for run in runs(plan):
        ended = {seed: file for seed in plan.seeds if (file := run.file(folder, seed)).is_file()}
        if not ended:
            continue
        scores = [score(plan, seed, file) for seed, file in ended.items()]
        means = {name: statistics.fmean(one[name] for one in scores) for name in scores[0]}
        truth = {key: means[key] for key in ("true_l0", "fvu_truth")}
        spread = statistics.stdev(one["mcc"] for one in scores) if len(scores) > 1 else 0.0
        rows.append(
            {"library": run.library, "architecture": run.architecture, "seeds": len(scores)}
            | {key: round(means[key], 4) for key in COLUMNS}
            | {"mcc_sd": round(spread, 4), "settings": " ".join(run.settings)}
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
        ((run, seed),) = (
            (run, seed)
            for run, seed in itertools.product(runs(plan), plan.seeds)
            if run.file(options.folder, seed) == options.file
        )
        train_ours(plan, run, seed, options.file)
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
