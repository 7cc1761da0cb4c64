"""The loop around any task: when it logs and saves, what a stop leaves, what goes wrong and how."""

import json
import logging
import math
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sae_kit.checkpoint import checkpoints, load_checkpoint
from sae_kit.train import loop as loop_module
from sae_kit.train.loop import Diverged, Loop, LoopPlan, TrainingError

PLAN = LoopPlan(n_steps=10, log_every=4, checkpoint_every=3, n_checkpoints=2, shown=("loss",))


class Counting:
    """A task whose whole state is a sum; `at` maps steps to something that happens in them."""

    n_tokens_per_step = 5

    def __init__(self, at=None):
        self.sum = torch.zeros((), dtype=torch.float64)
        self.steps: list[tuple[int, bool]] = []
        self.at = at or {}
        self.loss = 1.0

    def step(self, step, *, measure):
        self.steps.append((step, measure))
        self.sum += math.sqrt(step + 1)
        self.at.get(step, lambda: None)()
        return {"loss": torch.tensor(self.loss), **({"sum": float(self.sum)} if measure else {})}

    def state_dict(self):
        return {"sum": self.sum, "parts": [{"sum": self.sum}]}

    def load_parts(self, parts):
        self.load_state_dict(parts[0])

    def load_state_dict(self, state):
        self.sum = state["sum"].clone()


class Collected:
    def __init__(self):
        self.lines = []

    def log(self, metrics, step):
        self.lines.append((step, dict(metrics)))

    def close(self):
        pass


def make(task, folder: Path, plan: LoopPlan = PLAN, loggers=()) -> Loop:
    return Loop(task, plan, folder=folder, loggers=list(loggers))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def saved(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder / "checkpoints")]


# --- when -----------------------------------------------------------------------------------------


def test_it_logs_and_saves_on_schedule_and_at_the_end(tmp_path):
    task, also = Counting(), Collected()
    assert make(task, tmp_path, loggers=[also]).run() is None
    assert [step for step, _ in task.steps] == list(range(10))
    assert [step for step, measure in task.steps if measure] == [2, 3, 5, 7, 8, 9]
    assert [line["step"] for line in lines(tmp_path)] == [4, 8, 10]
    assert [line["tokens"] for line in lines(tmp_path)] == [20, 40, 50]
    assert [{"step": step, **metrics} for step, metrics in also.lines] == lines(tmp_path)
    assert saved(tmp_path) == ["step_10", "step_9"]


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    whole = Counting()
    make(whole, tmp_path / "whole").run()

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(Counting({8: stop}), tmp_path / "cut").run()
    assert [line["step"] for line in lines(tmp_path / "cut")] == [4, 8]
    task = Counting()
    loop = make(task, tmp_path / "cut")
    assert loop.resume()
    assert loop.n_done == 6
    loop.run()
    assert [step for step, _ in task.steps] == [6, 7, 8, 9]
    assert torch.equal(task.sum, whole.sum)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (
        tmp_path / "whole" / "metrics.jsonl"
    ).read_bytes()


def test_a_run_without_a_checkpoint_starts_from_the_beginning(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert not make(Counting(), tmp_path).resume()
    assert f"{tmp_path} has no checkpoint yet" in caplog.text


def test_a_checkpoint_that_was_about_to_be_replaced_is_resumed_from(tmp_path):
    make(Counting(), tmp_path).run()
    whole = tmp_path / "checkpoints" / "step_10"
    whole.rename(whole.with_name(".step_10.old"))  # where a kill between two renames leaves it
    loop = make(Counting(), tmp_path)
    assert loop.resume()
    assert loop.n_done == 10


def test_damaged_checkpoints_alone_are_no_beginning(tmp_path):
    make(Counting(), tmp_path).run()
    for path in checkpoints(tmp_path / "checkpoints"):
        (path / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"only damaged ones \(step_10, step_9\)"):
        make(Counting(), tmp_path).resume()


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    make(Counting(), tmp_path).run()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    task = Counting()
    loop = make(task, tmp_path)
    loop.resume()
    assert loop.run() is None
    assert task.steps == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path, caplog, number):
    before = signal.getsignal(number)
    task = Counting({4: lambda: os.kill(os.getpid(), number)})
    assert make(task, tmp_path).run() == number
    assert task.steps[-1] == (4, False)
    assert saved(tmp_path) == ["step_5", "step_3"]
    path = tmp_path / "checkpoints" / "step_5"
    assert torch.equal(load_checkpoint(path)["task"]["sum"], task.sum)
    assert f"python train.py resume={tmp_path}" in caplog.text
    assert signal.getsignal(number) is before


def test_a_signal_during_a_save_stops_after_it(tmp_path, monkeypatch):
    save = loop_module.save_checkpoint

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return save(*arguments, **options)

    monkeypatch.setattr(loop_module, "save_checkpoint", interrupted)
    task = Counting()
    assert make(task, tmp_path).run() == signal.SIGTERM
    # At the latest after one more step, and what is saved last is what was done last.
    assert load_checkpoint(checkpoints(tmp_path / "checkpoints")[0])["n_done"] == len(task.steps)
    assert len(task.steps) <= 4


def test_a_second_interrupt_does_not_wait(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make(Counting({4: twice}), tmp_path).run()
    assert saved(tmp_path) == ["step_3"]


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    task = Counting()
    thread = threading.Thread(target=make(task, tmp_path).run)
    thread.start()
    thread.join()
    assert len(task.steps) == 10


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_it(tmp_path, loss):
    task = Counting()
    task.at = {6: lambda: setattr(task, "loss", loss)}
    plan = replace(PLAN, remedy="lower trainer.lr")
    with pytest.raises(
        TrainingError, match=rf"the loss is {loss} at step 8; .*step_6.*trainer\.lr"
    ):
        make(task, tmp_path, plan).run()
    assert saved(tmp_path) == ["step_6", "step_3"]
    assert [line["step"] for line in lines(tmp_path)] == [4]


@pytest.mark.parametrize("n_checkpoints", [1, 2])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, n_checkpoints):
    task = Counting()
    task.at = {4: lambda: task.sum.fill_(math.nan)}
    with pytest.raises(TrainingError, match=r"task\.sum is not finite after step 6; .*step_3"):
        make(task, tmp_path, replace(PLAN, n_checkpoints=n_checkpoints)).run()
    assert saved(tmp_path) == ["step_3"]


def test_a_task_that_has_diverged_says_where_and_nothing_of_it_is_saved(tmp_path):
    def diverge():
        raise Diverged("blocks.1.hook_resid_pre: the loss is nan")

    plan = replace(PLAN, remedy="lower trainer.lr")
    message = (
        r"^blocks\.1\.hook_resid_pre: the loss is nan at step 9; .*step_6\. .* lower trainer\.lr"
    )
    with pytest.raises(TrainingError, match=message):
        make(Counting({8: diverge}), tmp_path, plan).run()
    assert saved(tmp_path) == ["step_6", "step_3"]


def test_lists_in_the_state_are_looked_through(tmp_path):
    task = Counting()
    task.state_dict = lambda: {"parts": [{}, {"sum": torch.tensor([0.0, math.inf])}]}
    with pytest.raises(TrainingError, match=r"task\.parts\.1\.sum is not finite .* no checkpoint"):
        make(task, tmp_path).run()


def test_whole_numbers_are_always_finite(tmp_path):
    task = Counting()
    task.state_dict = lambda: {"n": torch.tensor([1]), "none": None, "word": "nan", "sum": task.sum}
    assert make(task, tmp_path).run() is None


def test_a_disk_that_refuses_says_what_is_left(tmp_path, monkeypatch):
    save, n_saved = loop_module.save_checkpoint, 0

    def full(*arguments, **options):
        nonlocal n_saved
        n_saved += 1
        if n_saved == 3:
            raise OSError(28, "No space left on device: could not write x")
        return save(*arguments, **options)

    monkeypatch.setattr(loop_module, "save_checkpoint", full)
    with pytest.raises(TrainingError, match="No space left on device: could not write x") as error:
        make(Counting(), tmp_path).run()
    assert "At step 9; the last good checkpoint is" in str(error.value)
    assert "step_6" in str(error.value)
    assert f"continue with: python train.py resume={tmp_path}" in str(error.value)


def test_a_connection_that_breaks_says_how_to_continue(tmp_path):
    def broken():
        raise ConnectionError("the hub is gone")

    with pytest.raises(TrainingError, match=r"the hub is gone\nAt step 4; .*step_3.*resume="):
        make(Counting({4: broken}), tmp_path).run()


def test_a_bug_is_not_dressed_up(tmp_path):
    with pytest.raises(KeyError):
        make(Counting({4: lambda: {}["a"]}), tmp_path).run()
