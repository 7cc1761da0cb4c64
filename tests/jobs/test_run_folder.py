"""Claiming a folder for a run, and what must agree when it is continued."""

import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sae_kit.jobs.run_folder import (
    leaving_no_empty_folder,
    plain,
    read_config,
    record_start,
    resumed_run,
    start_run,
)

GIVEN = ["sae.k=4", "trainer.lr=1e-5", "trainer.n_tokens=2e6", "sites=[a,b]"]


@pytest.fixture
def run(composed, tmp_path) -> Path:
    """The folder of a run that has been started."""
    with composed(tmp_path / "run", *GIVEN) as cfg:
        record_start(*start_run(cfg))
    return tmp_path / "run"


# --- starting -------------------------------------------------------------------------------------


def test_a_new_run_gets_its_folder_and_config(composed, tmp_path):
    with composed(tmp_path / "run", *GIVEN) as cfg:
        folder, values = start_run(cfg)
    assert folder == tmp_path / "run"
    assert values["sae"]["k"] == 4
    assert "resume" not in values
    assert list(folder.iterdir()) == [], "nothing is written before the job has checked its config"


def test_the_config_survives_the_disk(run, composed):
    with composed(run, *GIVEN) as cfg:
        assert read_config(run) == plain(cfg)


def test_a_folder_with_a_run_is_not_taken_again(run, composed):
    with composed(run) as cfg, pytest.raises(ValueError, match=f"{run} holds a run already"):
        start_run(cfg)


def test_what_is_missing_is_named(composed, tmp_path):
    with (
        composed(tmp_path, "data=text") as cfg,
        pytest.raises(ValueError, match=r"data\.paths: missing; give it a value"),
    ):
        plain(cfg)


def test_starts_are_recorded_one_by_one(run, composed):
    with composed(run, f"resume={run}") as cfg:
        record_start(*resumed_run(cfg))
    first, second = json.loads((run / "provenance.json").read_text())
    assert first["overrides"] == GIVEN
    assert second["overrides"] == []
    assert first["config"] == second["config"] == read_config(run)
    assert "torch" in first["versions"]


def test_a_start_that_left_no_config_does_not_count(composed, tmp_path):
    """Killed between the two files: the folder is free."""
    (tmp_path / "provenance.json").write_text("[{}]")
    with composed(tmp_path) as cfg:
        record_start(*start_run(cfg))
    assert len(json.loads((tmp_path / "provenance.json").read_text())) == 1


def test_a_folder_that_takes_no_files_is_named(composed, tmp_path):
    (tmp_path / "provenance.json").mkdir()
    with (
        composed(tmp_path) as cfg,
        pytest.raises(ValueError, match=r"hydra\.run\.dir: .*could not write .*another folder"),
    ):
        record_start(*start_run(cfg))
    assert not (tmp_path / "config.yaml").exists()


# --- resuming -------------------------------------------------------------------------------------


def test_a_run_is_continued_with_its_own_config(run, composed, tmp_path):
    with composed(tmp_path / "elsewhere", f"resume={run}") as cfg:
        folder, values = resumed_run(cfg)
    assert folder == run
    assert values == read_config(run)
    assert values["sae"]["k"] == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sae.k=5", ["sae.k: 4 -> 5"]),
        ("sites=[a]", [r"sites: \['a', 'b'\] -> \['a'\]"]),
        ("data.context_size=8", ["data.context_size: 256 -> 8"]),
    ],
)
def test_a_changed_config_is_shown(run, composed, given, said):
    with (
        composed(run, f"resume={run}", given) as cfg,
        pytest.raises(Exception, match=".*".join(said)),
    ):
        resumed_run(cfg)


def test_the_same_again_is_no_change(run, composed):
    with composed(run, f"resume={run}", *GIVEN, "trainer.seed=0") as cfg:
        assert resumed_run(cfg)[0] == run


def test_an_edited_config_is_shown(run, composed):
    path = run / "config.yaml"
    path.write_text(re.sub("k: 4", "k: 6", path.read_text()))
    with (
        composed(run, f"resume={run}") as cfg,
        pytest.raises(ValueError, match=r"config.yaml was changed\n  sae\.k: 4 -> 6\nUndo"),
    ):
        resumed_run(cfg)


def test_a_folder_without_a_run_is_refused(composed, tmp_path):
    with (
        composed(tmp_path / "a", f"resume={tmp_path}") as cfg,
        pytest.raises(ValueError, match=f"resume: {tmp_path} holds no run"),
    ):
        resumed_run(cfg)


@pytest.mark.parametrize("content", [None, "[1, 2]", "task: cooking", "foo: ["])
def test_only_a_runs_config_is_read(tmp_path, content):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path}"):
        read_config(tmp_path)


def test_whole_numbers_stay_whole(run):
    """2e6 is a float on the command line, and an int field takes it again after the round trip."""
    assert OmegaConf.load(run / "config.yaml").trainer.n_tokens == 2_000_000


# --- failing --------------------------------------------------------------------------------------


def test_a_failure_leaves_no_empty_folder(composed, tmp_path):
    with (
        composed(tmp_path / "run"),
        pytest.raises(ValueError, match="no"),
        leaving_no_empty_folder(),
    ):
        raise ValueError("no")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_in_it_stays(composed, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with composed(tmp_path / "run"), pytest.raises(KeyboardInterrupt), leaving_no_empty_folder():
        raise KeyboardInterrupt
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_success_leaves_the_folder(composed, tmp_path):
    with composed(tmp_path / "run"), leaving_no_empty_folder():
        pass
    assert (tmp_path / "run").is_dir()
