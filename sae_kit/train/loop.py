"""The loop that every training run shares: steps, logs, checkpoints, signals, and what goes wrong.

A `Task` knows how to take one step and how to save and restore itself; the loop knows when. Since a
checkpoint holds the task's whole state and the step count, a run that was killed and resumed is bit
for bit the run that never was.
"""

import contextlib
import logging
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, final, runtime_checkable

from torch import Tensor

from sae_kit import dist
from sae_kit.checkpoint import checkpoints, latest_parts, save_checkpoint
from sae_kit.dist import PeerLost, world
from sae_kit.log import JsonlLogger, Logger, Progress
from sae_kit.maths import all_finite
from sae_kit.state import State
from sae_kit.train.allocator import give_back_memory

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Name of the folder in a run folder that holds its checkpoints."""

TRIM_EVERY = 100
"""Steps after which unused memory goes back to the system."""

Metrics = Mapping[str, Tensor | int | float]
"""What a step reports, by name."""


class TrainingError(RuntimeError):
    """Training cannot go on (a loss that is not finite, a full disk); the message says what is left
    and how to continue.
    """


class Diverged(RuntimeError):
    """Raised by a task on a measured step that went wrong; the message names the part and how."""


@runtime_checkable
class Task(Protocol):
    """What a loop drives: something trainable, one step at a time."""

    n_tokens_per_step: int
    """How far one step moves the progress bar."""

    def step(self, step: int, *, measure: bool) -> Metrics:
        """Take optimiser step number `step` (from 0); returns "loss", and if `measure` all there is
        to log.

        Raises:
            Diverged: what was measured shows that going on is pointless.
        """
        ...

    def state_dict(self) -> State:
        """This process's part of the state."""
        ...

    def load_parts(self, parts: Sequence[State]) -> None:
        """Continue from what every process of a run returned from `state_dict`, by number."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class LoopPlan:
    """When the loop does what."""

    n_steps: int
    log_every: int
    checkpoint_every: int
    n_checkpoints: int
    """Checkpoints kept; older ones are deleted."""
    shown: tuple[str, ...] = ()
    """Metrics shown beside the progress bar."""
    remedy: str = "lower the learning rate"
    """What to do about a loss that is not finite, in the words of the config."""
    ended: Callable[[], bool] = lambda: False
    """Whether the task needs no more steps, as its last measured step and its state say."""


@final
class Loop:
    """Runs a task from where it stands to the plan's last step."""

    def __init__(self, task: Task, plan: LoopPlan, *, folder: Path, loggers: Sequence[Logger]):
        """`folder` is the run's; `loggers` get the same lines as its metrics.jsonl."""
        self.task, self.plan, self.loggers = task, plan, loggers
        self.run_folder = folder
        self.folder = folder / CHECKPOINTS
        self.n_done = 0

    def resume(self) -> bool:
        """Restore the newest intact checkpoint; False if the run ended before its first.

        Raises:
            ValueError: every checkpoint is damaged, or they are not of this task.
        """
        if not checkpoints(self.folder):
            log.info("%s has no checkpoint yet: starting from the beginning", self.run_folder)
            return False
        parts = latest_parts(self.folder)
        self.task.load_parts(_Tasks(parts))
        self.n_done = parts.step
        log.info("resumed from %s (step %d of %d)", parts.path, self.n_done, self.plan.n_steps)
        return True

    def run(self) -> signal.Signals | None:
        """Train to the end; returns None, or the signal that asked to stop (the state is saved
        then).

        Raises:
            TrainingError: the loss or the weights are no longer finite, the disk is full, or the
                data cannot be read on.
        """
        per_step = self.task.n_tokens_per_step
        try:
            with self._listening() as received, contextlib.ExitStack() as closing:
                self.run_folder.mkdir(parents=True, exist_ok=True)
                if world().rank > 0:  # process 0 speaks for all
                    return self._run(received, None, [])
                # Steps after the checkpoint are taken again, so their lines go.
                lines = JsonlLogger(self.run_folder / "metrics.jsonl", resume_step=self.n_done)
                progress = Progress(self.plan.n_steps * per_step, done=self.n_done * per_step)
                for one in (lines, progress):
                    closing.enter_context(contextlib.closing(one))
                return self._run(received, progress, [lines, *self.loggers])
        except PeerLost as error:
            raise TrainingError(
                f"{error}\nAt step {self.n_done}; {self._kept()}. Continue with: {self._continue()}"
            ) from error
        except OSError as error:
            raise TrainingError(
                f"{_reason(error)}\nAt step {self.n_done}; {self._kept()}. When that is mended, "
                f"continue with: {self._continue()}"
            ) from error

    def _run(
        self, received: list[signal.Signals], progress: Progress | None, loggers: Sequence[Logger]
    ) -> signal.Signals | None:
        plan = self.plan
        shown: dict[str, float] = {}
        while self.n_done < plan.n_steps and not plan.ended():
            last = self.n_done + 1 == plan.n_steps
            due = last or (self.n_done + 1) % plan.log_every == 0
            saving = last or (self.n_done + 1) % plan.checkpoint_every == 0
            # What is about to be saved is measured too: nothing that has diverged is kept.
            metrics = self._step(measure=due or saving)
            self.n_done += 1
            if self.n_done % TRIM_EVERY == 0:
                give_back_memory()
            if due:
                shown = self._log(metrics, loggers)
            if progress is not None:
                progress.update(self.task.n_tokens_per_step, **shown)
            # Once, since a signal may come between two looks; and it stops all processes.
            number = dist.largest(received[0] if received else 0)
            if number or saving or plan.ended():
                self._save(float(metrics["loss"]))
            if number:
                stopped = signal.Signals(number)
                log.warning(
                    "stopped by %s after step %d; everything is saved", stopped.name, self.n_done
                )
                log.warning("continue with: %s", self._continue())
                return stopped
        return None

    def _step(self, *, measure: bool) -> Metrics:
        try:
            return self.task.step(self.n_done, measure=measure)
        except Diverged as error:
            self._give_up(f"{error} at step {self.n_done + 1}")

    def _log(self, metrics: Metrics, loggers: Sequence[Logger]) -> dict[str, float]:
        """Log the metrics; returns those to show beside the progress bar."""
        values = {name: float(value) for name, value in metrics.items()}
        self._check_finite(values["loss"])
        for logger in loggers:
            logger.log({"tokens": self.n_done * self.task.n_tokens_per_step, **values}, self.n_done)
        return {name: values[name] for name in self.plan.shown if name in values}

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            self._give_up(f"the loss is {loss} at step {self.n_done}")

    def _save(self, loss: float) -> None:
        # The loss of this step was computed before its update, so the weights are checked as well;
        # first, since they say where.
        state = self.task.state_dict()
        if (bad := _first_not_finite(state, "task")) is not None:
            self._give_up(f"{bad} is not finite after step {self.n_done}")
        self._check_finite(loss)
        path = save_checkpoint(
            self.folder,
            self.n_done,
            {"n_done": self.n_done, "task": state},
            keep=self.plan.n_checkpoints,
        )
        log.debug("saved %s", path)

    def _give_up(self, what: str) -> NoReturn:
        raise TrainingError(f"{what}; {self._kept()}. Start a new run: {self.plan.remedy}.")

    def _kept(self) -> str:
        kept = checkpoints(self.folder)
        return f"the last good checkpoint is {kept[0]}" if kept else "no checkpoint was due yet"

    def _continue(self) -> str:
        size = world().size
        start = "python" if size == 1 else f"torchrun --nproc-per-node {size}"
        return f"{start} train.py resume={self.run_folder}"

    @contextlib.contextmanager
    def _listening(self) -> Iterator[list[signal.Signals]]:
        """Collects SIGINT and SIGTERM; a second SIGINT interrupts at once, as anywhere else."""
        received: list[signal.Signals] = []

        def note(number: int, _frame: Any) -> None:
            if received and number == signal.SIGINT:
                raise KeyboardInterrupt
            received.append(signal.Signals(number))
            log.warning("%s: finishing this step, then saving", signal.Signals(number).name)

        before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            # A ValueError: not the main thread, so the signals are the caller's.
            with contextlib.suppress(ValueError):
                before[number] = signal.signal(number, note)
        try:
            yield received
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@final
class _Tasks(Sequence[State]):
    """The task's state in every part of a checkpoint, read when asked for."""

    def __init__(self, parts: Sequence[State]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: Any) -> Any:
        return self._parts[index]["task"]


def _reason(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"


def _first_not_finite(state: Any, where: str) -> str | None:
    """The path of the first floating-point tensor in `state` with a NaN or infinity, if any."""
    if isinstance(state, Tensor):
        bad = state.is_floating_point() and not all_finite(state)
        return where if bad else None
    if isinstance(state, Mapping):
        items: Iterable[tuple[Any, Any]] = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    else:
        return None
    found = (_first_not_finite(value, f"{where}.{key}") for key, value in items)
    return next((path for path in found if path), None)
