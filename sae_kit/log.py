"""Where a run's numbers go: metrics.jsonl always, a tracking service when chosen, a progress bar.

`logger: {kind: wandb}` in the config chooses the service; its package is imported only then.
"""

import importlib
import json
import logging
import math
import secrets
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, final, runtime_checkable

from tqdm import tqdm

from sae_kit.config import Family
from sae_kit.files import write_atomic

logger = logging.getLogger(__name__)


@runtime_checkable
class Logger(Protocol):
    """Takes the metrics of a run, step by step."""

    def log(self, metrics: Mapping[str, int | float], step: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class LoggerConfig(Family, ABC, tag="kind", package="sae_kit.log"):
    """Which tracking service gets the metrics, beside metrics.jsonl."""

    @abstractmethod
    def build(self, folder: Path, config: Mapping[str, Any]) -> Logger:
        """A logger for the run in `folder` whose whole config is `config` (plain types)."""


@final
@dataclass(frozen=True, kw_only=True)
class NoneConfig(LoggerConfig, kind="none"):
    """No tracking service."""

    def build(self, folder: Path, config: Mapping[str, Any]) -> Logger:
        return NoneLogger()


@final
@dataclass(frozen=True, kw_only=True)
class WandbConfig(LoggerConfig, kind="wandb"):
    """Weights & Biases. A resumed run continues the same W&B run, whose id the folder keeps."""

    project: str = "sae_kit"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; None: the account's default."""
    name: str | None = None
    """Display name of the run; None: the run folder's name."""
    mode: Literal["online", "offline", "disabled"] = "online"
    """offline: write to the run folder only, for `wandb sync` later."""

    def build(self, folder: Path, config: Mapping[str, Any]) -> Logger:
        """Starts or continues the W&B run.

        Raises:
            ValueError: the wandb package is not installed, or nobody is logged in.
        """
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            remedy = "pip install wandb, or choose logger=none"
            raise ValueError(f"logger.kind: 'wandb' needs the wandb package: {remedy}") from error
        id_file = folder / "wandb_id.txt"
        if not id_file.exists():
            write_atomic(id_file, secrets.token_hex(4))
        try:
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                name=self.name or folder.name,
                id=id_file.read_text(encoding="utf-8").strip(),
                mode=self.mode,
                resume="allow",
                dir=str(folder),
                config=dict(config),
            )
        except wandb.errors.Error as error:
            remedy = "run `wandb login`, or give logger.mode=offline or logger=none"
            raise ValueError(f"logger: W&B does not start ({error}); {remedy}") from error
        return WandbLogger(run)


@final
class NoneLogger:
    """Drops everything."""

    def log(self, metrics: Mapping[str, int | float], step: int) -> None:
        pass

    def close(self) -> None:
        pass


@final
class WandbLogger:
    """Hands the metrics to a W&B run.

    Limit: W&B takes no step twice, so what a killed run logged after its last checkpoint stays.
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, metrics: Mapping[str, int | float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


@final
class JsonlLogger:
    """One JSON object a line, `{"step": ..., metric: value, ...}`, on disk as soon as logged.

    Args:
        path: the file, usually metrics.jsonl in the run folder.
        resume_step: None starts the file anew. A number continues it after dropping the lines of
            later steps, which the resumed run will write again.

    NaN and infinities are written as null, which every JSON reader takes.
    """

    def __init__(self, path: Path, *, resume_step: int | None) -> None:
        self.path = Path(path)
        kept = "" if resume_step is None else self._lines_until(resume_step)
        write_atomic(self.path, kept)
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def log(self, metrics: Mapping[str, int | float], step: int) -> None:
        """Append one line.

        Raises:
            OSError: the disk refused; the message names the file.
        """
        line = {"step": step, **{name: _json_number(value) for name, value in metrics.items()}}
        try:
            self._file.write(json.dumps(line) + "\n")  # line-buffered: flushed at the newline
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        self._file.close()

    def _lines_until(self, step: int) -> str:
        if not self.path.exists():
            return ""
        kept = []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(keepends=True), start=1):
            try:
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                logger.warning("%s: line %d is damaged and dropped", self.path, number)
        return "".join(kept)


def _json_number(value: int | float) -> int | float | None:
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


@final
class Progress:
    """A progress bar on standard error: share done, recent tokens/s, time left, metrics.

    On a terminal it is redrawn in place; elsewhere (a log file, a pipe) it prints a line every
    10 s and one at the end.

    Args:
        total: tokens of the whole run.
        done: tokens done before this start (a resumed run).
        unit: what is counted, if not tokens.
        clock: seconds, monotonic; replaced in tests.
    """

    WINDOW_S = 30.0  # long enough to smooth over saves, short enough to show a slowdown
    LINE_EVERY_S = 10.0

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        unit: str = "tokens",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.done, self.unit = total, done, unit
        self._stream = sys.stderr
        self._clock = clock
        self._marks = deque([(clock(), done)])  # (time, tokens done then), oldest first
        self._last_line = clock()
        self._postfix = ""
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty():
            form = f"{{percentage:3.0f}}%|{{bar}}| {{n_fmt}}/{{total_fmt}} {unit}{{postfix}}"
            self._bar = tqdm(
                total=total, initial=done, file=self._stream, unit_scale=True, bar_format=form
            )

    @property
    def rate(self) -> float:
        """Tokens (or what is counted) per second over the last 30 s; 0 before the first update."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def update(self, n: int, **postfix: int | float) -> None:
        """Count `n` more and show the metrics `postfix` beside them (FVU=0.08, L0=16)."""
        now = self._clock()
        self.done += n
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and self._marks[1][0] <= now - self.WINDOW_S:
            self._marks.popleft()
        self._postfix = "".join(f", {name} {value:.4g}" for name, value in postfix.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._speed() + self._postfix, refresh=False)
            self._bar.update(n)
        elif now - self._last_line >= self.LINE_EVERY_S:
            self._last_line = now
            self._print_line()

    def close(self) -> None:
        """Draw the final state and leave it standing."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
        else:
            self._print_line()

    def _print_line(self) -> None:
        share = 100 * self.done / self.total if self.total else 100.0
        state = f"{share:.0f}% {self.done:,}/{self.total:,} {self.unit}"
        print(f"{state}, {self._speed()}{self._postfix}", file=self._stream, flush=True)

    def _speed(self) -> str:
        if self.rate == 0:
            return "ETA ?"
        left = max(self.total - self.done, 0) / self.rate
        return f"{self.rate:,.0f} {self.unit}/s, ETA {tqdm.format_interval(left)}"
