"""An SAE of planted rows, trained, saved and held against the truth; no language model."""

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from sae_kit.config import from_node, to_dict
from sae_kit.data.planted import PLANTED, PlantedConfig, PlantedDictionary, PlantedSource
from sae_kit.dist import world
from sae_kit.evals.base import PlantedSubject
from sae_kit.evals.recovery import Recovery
from sae_kit.formats.base import SAES_FOLDER, save_sae
from sae_kit.jobs.run_folder import Outcome, check_alone, record_start
from sae_kit.log import LoggerConfig
from sae_kit.models.hooks import torch_device
from sae_kit.result import Result
from sae_kit.sae.base import SAEConfig
from sae_kit.timing import Stopwatch
from sae_kit.train.objective import LocalObjective
from sae_kit.train.trainer import Trainer, TrainerConfig

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class TrainPlanted:
    """The whole config of a run: conf/planted.yaml."""

    task: str
    planted: PlantedConfig
    sae: SAEConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    device: str = "auto"


def train_planted(values: dict[str, Any], folder: Path, *, resume: bool) -> Outcome:
    """Train as the config `values` says, in the run folder; a run's score is 1 - MCC.

    Raises:
        ValueError: the config does not fit together; nothing has been written then.
    """
    config = from_node(TrainPlanted, values)
    check_alone(config.task)
    stopwatch = Stopwatch()
    trainer = build_trainer(config, stopwatch)
    record_start(folder, values)
    log.info("run folder: %s", folder)
    with contextlib.closing(config.logger.build(folder, values)) as logger:
        stopped = trainer.fit(folder, [logger], resume=resume)
    if stopped is not None:
        return Outcome(stopped)
    log.info("where the time went: %s", stopwatch.summary())
    export(config, trainer, folder)
    result = measure(config, trainer)
    result.save(folder / "evaluation")
    log.info("\n%s\n\n%s", closing_table(result), whats_next(folder))
    return Outcome(score=1 - float(result.scalars["mean_mcc"]))


def build_trainer(config: TrainPlanted, stopwatch: Stopwatch) -> Trainer:
    """The trainer of a run at its start."""
    device = torch_device(config.device)
    source = PlantedSource(
        PlantedDictionary.build(config.planted),
        batch_rows=config.trainer.batch_rows,
        seed=config.trainer.seed,
        world=world(),
        device=device,
    )
    return Trainer(
        config.trainer, config.sae, LocalObjective(), source, device=device, stopwatch=stopwatch
    )


def export(config: TrainPlanted, trainer: Trainer, folder: Path) -> None:
    """Fold the input scale into the SAE and write it to `saes/planted/`."""
    sae, scale = trainer.saes[PLANTED], trainer.source.scales[PLANTED]
    sae.fold_scales(scale, scale)
    sae.metadata = {
        "hook_name": PLANTED,
        "training": {
            "planted": to_dict(config.planted),
            "trainer": to_dict(config.trainer),
            "folded_input_scale": scale,
        },
    }
    save_sae(
        sae,
        folder / SAES_FOLDER / PLANTED,
        metadata=sae.metadata,
        sparsity=trainer.firing[PLANTED].frequency(),
    )


def measure(config: TrainPlanted, trainer: Trainer) -> Result:
    """The SAE against the truth, on rows drawn apart."""
    sae = trainer.saes[PLANTED]
    subject = PlantedSubject(
        planted=config.planted,
        saes={PLANTED: sae},
        seed=config.trainer.seed,
        device=sae.W_dec.device,
    )
    return Recovery().run(subject)


def closing_table(result: Result) -> str:
    """One line per measure; docs/recovery.md defines them."""
    (row,) = result.rows
    return "\n".join(f"{name:<16}{value:>9.4f}" for name, value in row.items() if name != "site")


def whats_next(folder: Path) -> str:
    """What a user may want to do with the run."""
    return (
        f"SAE:       {folder / SAES_FOLDER / PLANTED} (SAELens layout)\n"
        f"figures:   python eval.py eval=recovery run={folder}"
    )
