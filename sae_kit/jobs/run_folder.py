"""A run's folder: what is written when it starts, and what must agree when it is continued.

config.yaml       the whole resolved config
provenance.json   time, command, overrides, config, package versions, git state; once per start
metrics.jsonl     written by the run
checkpoints/      written by the run
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, final

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from sae_kit.config import differences, provenance
from sae_kit.dist import world
from sae_kit.files import write_atomic

CONFIG, PROVENANCE = "config.yaml", "provenance.json"


@final
@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    stopped: Signals | None = None
    """The signal that stopped it before its end."""
    score: float | None = None
    """What a search over settings minimises, where the task has such a thing."""


PRIMARY = {
    "saes": "train",
    "language_model": "language_model",
    "cache": "cache",
    "planted": "planted",
    "addition": "addition",
}
"""The primary config of each task."""


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The composed config as plain values, without what is about this start only.

    Raises:
        ValueError: a required field has no value.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ValueError(f"{missing[0]}: missing; give it a value ({missing[0]}=...)")
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    values.pop("resume", None)
    return {str(key): value for key, value in values.items()}


def check_alone(task: str) -> None:
    """ValueError if this process is one of several, for tasks that are the work of one."""
    if (size := world().size) > 1:
        raise ValueError(
            f"task: {task} is the work of one process, not of {size}; start it without torchrun"
        )


@contextlib.contextmanager
def leaving_no_empty_folder() -> Iterator[None]:
    """Remove the run folder, which Hydra makes, if the body fails before anything is in it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: that is what the body was for
            Path(HydraConfig.get().runtime.output_dir).rmdir()
        raise


def start_run(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    """Claim the run folder for a new run; returns it and the config.

    Raises:
        ValueError: the folder holds a run already.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if (folder / CONFIG).exists():
        raise ValueError(
            f"hydra.run.dir: {folder} holds a run already; continue it with resume={folder}, or "
            "choose another folder"
        )
    return folder, plain(cfg)


def resumed_run(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    """The folder named by `resume` and the config its run was started with.

    Raises:
        ValueError: it holds no run, or the command line changes the config; the message lists how.
    """
    folder = Path(cfg.resume)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"resume: {folder} holds no run (no {CONFIG}); give a run's folder")
    saved = read_config(folder)
    first = _starts(folder)[0]
    if edited := differences(first["config"], saved):
        raise ValueError(
            f"resume: a resumed run keeps its config, but {folder / CONFIG} was changed\n  "
            + "\n  ".join(edited)
            + "\nUndo that, or start a new run."
        )
    if given := _overrides():
        _check_unchanged(PRIMARY[saved["task"]], first["overrides"], given)
    return folder, saved


def _check_unchanged(primary: str, before: list[str], given: list[str]) -> None:
    """ValueError if the overrides `given` change what those of `before` made of the config."""
    try:
        was = plain(hydra.compose(primary, overrides=before))
        now = plain(hydra.compose(primary, overrides=[*before, *given]))
        changed = differences(was, now)
    except HydraException:  # another architecture, say, without the fields that were set before
        changed = given
    if changed:
        raise ValueError(
            "resume: a resumed run keeps its config, but the command line changes\n  "
            + "\n  ".join(changed)
            + "\nLeave these out, or start a new run."
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The config of the run in `folder`. Raises ValueError where there is none."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder}: no run there ({CONFIG} is missing); give a run's folder")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged, no YAML ({error})") from error
    if not isinstance(values, dict) or values.get("task") not in PRIMARY:
        raise ValueError(f"{path}: not a config written by a training run")
    return {str(key): value for key, value in values.items()}


def record_start(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the config, and add this start to the provenance; process 0 does.

    Raises:
        ValueError: the folder cannot be written to.
    """
    if world().rank > 0:
        return
    # A run that was killed before it had its config is none.
    before = _starts(folder) if (folder / CONFIG).exists() else []
    entry = {**provenance(), "overrides": _overrides(), "config": dict(config)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / PROVENANCE, json.dumps([*before, entry], indent=2) + "\n")
        # Last: this is what makes the folder a run that can be continued.
        write_atomic(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    except OSError as error:
        raise ValueError(
            f"hydra.run.dir: {error.strerror}; choose another folder, or make room"
        ) from error


def _starts(folder: Path) -> list[dict[str, Any]]:
    """The entries of provenance.json, oldest first."""
    try:
        return json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"resume: {folder / PROVENANCE} cannot be read ({error}), so nothing says what the run "
            "was started with; start a new run"
        ) from error


def _overrides() -> list[str]:
    """What the command line gives beyond `resume`."""
    return [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
