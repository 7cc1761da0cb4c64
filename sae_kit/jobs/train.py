"""What train.py runs: the task named in the config, from its start or from its last checkpoint."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig

from sae_kit import dist
from sae_kit.jobs.cache_activations import cache_activations
from sae_kit.jobs.run_folder import Outcome, leaving_no_empty_folder, resumed_run, start_run
from sae_kit.jobs.train_addition import train_addition
from sae_kit.jobs.train_language_model import train_language_model
from sae_kit.jobs.train_planted import train_planted
from sae_kit.jobs.train_saes import train_saes

Job = Callable[..., Outcome]

JOBS: dict[str, Job] = {
    "saes": train_saes,
    "language_model": train_language_model,
    "cache": cache_activations,
    "planted": train_planted,
    "addition": train_addition,
}


def train(cfg: DictConfig) -> Outcome:
    """Run the task.

    Raises:
        ValueError: the config does not fit, or a resumed run would change it.
    """
    resume = cfg.resume is not None
    with leaving_no_empty_folder():
        folder, values = resumed_run(cfg) if resume else start_run(cfg)
        dist.barrier()  # every process has looked before process 0 writes
        with _heard_once():
            return _job(values)(values, folder, resume=resume)


@contextmanager
def _heard_once() -> Iterator[None]:
    """What all processes say alike is said by process 0; warnings are said by each."""
    logger = logging.getLogger("sae_kit")
    level = logger.level
    if dist.world().rank > 0:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _job(values: dict[str, Any]) -> Job:
    task = values.get("task")
    if task not in JOBS:
        raise ValueError(f"task: {task!r} is unknown; choose one of {', '.join(JOBS)}")
    return JOBS[task]
