"""Which job a config asks for, and what is left when it cannot start."""

import logging
from signal import SIGTERM

import pytest
from omegaconf import OmegaConf

from sae_kit import dist
from sae_kit.jobs import train as train_module
from sae_kit.jobs.run_folder import PRIMARY, Outcome, record_start, start_run
from sae_kit.jobs.train import JOBS, train


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """Jobs that only note what they were asked to do, and are stopped by SIGTERM."""
    noted = []

    def job(name):
        def run(values, folder, *, resume):
            noted.append((name, values["task"], folder, resume))
            return Outcome(SIGTERM)

        return run

    monkeypatch.setattr(train_module, "JOBS", {name: job(name) for name in JOBS})
    return noted


@pytest.mark.parametrize("task", sorted(JOBS))
def test_the_task_picks_the_job(calls, composed, tmp_path, task):
    extra = ["data.text_paths=[a.txt]"] if task == "language_model" else []
    with composed(tmp_path, *extra, name=PRIMARY[task]) as cfg:
        assert train(cfg) == Outcome(SIGTERM)
    assert calls == [(task, task, tmp_path, False)]


def test_every_job_has_a_primary_config():
    assert set(PRIMARY) == set(JOBS)


def test_a_resumed_run_says_itself_what_it_is(calls, composed, tmp_path):
    """Whatever primary config is composed, as `python train.py resume=...` always takes train."""
    run = tmp_path / "run"
    with composed(run, "data.text_paths=[a.txt]", name="language_model") as cfg:
        record_start(*start_run(cfg))
    with composed(tmp_path / "other", f"resume={run}") as cfg:
        train(cfg)
    assert calls == [("language_model", "language_model", run, True)]


def test_an_unknown_task_is_refused_and_leaves_nothing(composed, tmp_path):
    with (
        composed(tmp_path / "run", "task=cooking") as cfg,
        pytest.raises(ValueError, match="task: 'cooking' is unknown; choose one of saes"),
    ):
        train(cfg)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", ["addition", "language_model", "planted"])
def test_several_processes_are_refused_by_tasks_of_one_before_anything_is_written(
    composed, tmp_path, monkeypatch, task
):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    extra = ["data.text_paths=[a.txt]"] if task == "language_model" else []
    with (
        composed(tmp_path / "run", *extra, name=PRIMARY[task]) as cfg,
        pytest.raises(ValueError, match=f"task: {task} is the work of one process, not of 2"),
    ):
        train(cfg)
    assert not (tmp_path / "run").exists()


def test_a_missing_task_is_refused(composed, tmp_path):
    with composed(tmp_path) as cfg, pytest.raises(ValueError, match="task: None"):
        train(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "task"]))


def test_what_all_processes_say_alike_is_said_by_the_first(composed, tmp_path, monkeypatch):
    logger = logging.getLogger("sae_kit")
    heard = []

    def job(*_, **__):
        heard.append(logger.getEffectiveLevel())
        return Outcome()

    monkeypatch.setitem(JOBS, "saes", job)
    monkeypatch.setattr(dist, "barrier", lambda: None)
    before = logger.getEffectiveLevel()
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        with composed(tmp_path / rank) as cfg:
            train(cfg)
    assert heard == [before, logging.WARNING]
    assert logger.getEffectiveLevel() == before
