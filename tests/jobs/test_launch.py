"""What the user sees of an error, and which errors are shown whole."""

import errno
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from sae_kit.files import DamagedFileError
from sae_kit.jobs import launch as launch_module
from sae_kit.jobs.launch import explain, launch
from sae_kit.sae.topk import TopKConfig
from sae_kit.train.loop import TrainingError


@pytest.fixture(autouse=True)
def allocator_left_alone(monkeypatch):
    """The switch cannot be turned back, and these are not training runs."""
    monkeypatch.setattr(launch_module, "keep_freed_memory", lambda: None)


def raised(act) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any, to be explained
        act()
    return caught.value


def test_a_users_mistake_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        launch(lambda: TopKConfig(d_sae=4, k=5))
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: k: 5 does not fit; give 1 to d_sae=4\n"


def test_success_is_silent(capsys):
    assert launch(lambda: None) is None
    assert capsys.readouterr() == ("", "")


def test_an_exit_status_is_passed_on():
    def stop():
        raise SystemExit(143)

    with pytest.raises(SystemExit) as stopped:
        launch(stop)
    assert stopped.value.code == 143


def test_a_bug_is_shown_whole():
    with pytest.raises(ZeroDivisionError):
        launch(lambda: 1 // 0)
    # A ValueError from inside PyTorch is no message for users.
    with pytest.raises(ValueError, match="Invalid learning rate"):
        launch(lambda: torch.optim.Adam([torch.zeros(1)], lr=-1.0))


def test_an_interrupt_is_no_traceback(capsys):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        launch(interrupt)
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_training_says_is_passed_on():
    assert explain(TrainingError("the loss is nan")) == "the loss is nan"


def test_memory_that_is_not_there_is_the_users_to_know():
    error = raised(lambda: torch.empty(10**15))
    assert explain(error).startswith("not enough memory")
    assert "lower sae.d_sae" in explain(error)


def test_a_damaged_file_is_the_users_to_know():
    def act():
        from sae_kit.files import load_tensors

        load_tensors(Path("/nowhere/x.safetensors"))

    error = raised(act)
    assert isinstance(error, DamagedFileError)
    assert "/nowhere/x.safetensors" in explain(error)


def test_a_folder_that_hydra_cannot_make_names_the_setting():
    def act():
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", "/etc/passwd/run")

    message = explain(raised(act))
    assert "hydra.run.dir: cannot make the run folder /etc/passwd/run" in message
    assert "Not a directory" in message


def test_a_disk_error_of_ours_is_passed_on(tmp_path):
    from sae_kit.files import write_atomic

    (tmp_path / "file").write_text("")
    message = explain(raised(lambda: write_atomic(tmp_path / "file" / "x", "")))
    assert "could not write" in message
    assert "hydra" not in message


def test_the_run_folder_is_the_resumed_one_or_a_fresh_one():
    launch(lambda: None)  # registers the resolver
    cfg = OmegaConf.create({"resume": None, "dir": "${run_folder:${resume},fresh/folder}"})
    assert cfg.dir == "fresh/folder"
    cfg.resume = "outputs/train/2024-01-01_00-00-00"
    assert cfg.dir == "outputs/train/2024-01-01_00-00-00"
    cfg.resume = "a folder, with a comma=and more"
    assert cfg.dir == "a folder, with a comma=and more"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.lrr=1", ["trainer.lrr: there is no such setting (trainer.lrr=1); did you mean"]),
        ("seed=3", ["seed: there is no such setting", "did you mean trainer.seed?"]),
        ("zzz=1", ["zzz: there is no such setting (zzz=1); (known: ", "trainer"]),
        ("trainer.lr.x=3", ["trainer.lr.x: there is no such setting", "(known: none)"]),
        ("sae=topq", ["Could not find 'sae/topq'", "topk"]),
        ("trainer.lr", ["trainer.lr: cannot be read (Error parsing override"]),
        ("sites=blocks.[23].x", ["sites=blocks.[23].x: cannot be read", "in quotes"]),
        ("trainer=3", ["Config group override must be a string"]),
    ],
)
def test_what_hydra_refuses(composed, tmp_path, override, said):
    def act():
        with composed(tmp_path, override):
            pass

    message = explain(raised(act))
    for what in said:
        assert what in message
    assert "append" not in message
    assert "Config search path" not in message
