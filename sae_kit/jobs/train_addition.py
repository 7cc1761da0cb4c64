"""A transformer that adds modulo a prime, trained and kept in a run folder; no text, no SAE."""

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from sae_kit.checkpoint import latest_checkpoint
from sae_kit.config import from_node
from sae_kit.jobs.run_folder import Outcome, check_alone, read_config, record_start
from sae_kit.log import LoggerConfig
from sae_kit.train.loop import CHECKPOINTS, Loop
from sae_kit.train.modular_addition import AdditionTask, AdditionTraining, accuracy_on

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class TrainAddition:
    """The whole config of a run: conf/addition.yaml."""

    task: str
    addition: AdditionTraining
    logger: LoggerConfig


def train_addition(values: dict[str, Any], folder: Path, *, resume: bool) -> Outcome:
    """Train as the config `values` says, in the run folder; the network is in its checkpoint.

    Raises:
        ValueError: the config does not fit together; nothing has been written then.
    """
    config = from_node(TrainAddition, values)
    check_alone(config.task)
    task = AdditionTask(config.addition)
    record_start(folder, values)
    log.info("run folder: %s", folder)
    with contextlib.closing(config.logger.build(folder, values)) as logger:
        loop = Loop(task, task.plan(), folder=folder, loggers=[logger])
        if resume:
            loop.resume()
        stopped = loop.run()
    if stopped is None:
        seen, heldout = (accuracy_on(task.model, pairs) for pairs in (task.train, task.heldout))
        log.info(
            "after %d steps: accuracy %.4f on %d pairs it saw, %.4f on %d others",
            *(loop.n_done, seen, len(task.train), heldout, len(task.heldout)),
        )
    return Outcome(stopped)


def trained_addition(folder: Path) -> tuple[AdditionTask, int]:
    """The task of the run in `folder` as it stood at its newest checkpoint, and its steps.

    Raises:
        ValueError: `folder` holds no such run, or no checkpoint.
    """
    values = read_config(folder)
    if values["task"] != "addition":
        raise ValueError(
            f"{folder}: a run of task {values['task']}; give one of train.py --config-name=addition"
        )
    task = AdditionTask(from_node(TrainAddition, values).addition)
    _, state = latest_checkpoint(folder / CHECKPOINTS)
    task.load_parts([state["task"]])
    return task, int(state["n_done"])
