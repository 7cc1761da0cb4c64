"""Checkpoints: exact round trips, damage found and named, and nothing lost to kill or full disk."""

import contextlib
import errno
import json
import logging
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_kit import files
from sae_kit.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from sae_kit.files import DamagedFileError, save_tensors

# The children below only save and exit; that other threads do not follow a fork is what we want.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

FILES = ["tensors.safetensors", "state.json", "manifest.json"]


def state_at(step: int, n: int = 1000) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((n,), float(step)), "rng": torch.get_rng_state()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert repr(found) == repr(expected)  # repr: NaN equals itself, -0.0 is not 0.0


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(2.5),
        torch.tensor(True),
        torch.tensor([True, False]),
        torch.tensor([1.0, 1 / 3, -0.0, float("nan"), float("inf")], dtype=torch.bfloat16),
        torch.tensor([1 / 3], dtype=torch.float64),
        torch.tensor([1 / 3], dtype=torch.float16),
        torch.tensor([2**62, -1]),
        torch.arange(256, dtype=torch.uint8),
        torch.empty(0),
        torch.empty(3, 0, 2, dtype=torch.int32),
        torch.arange(6.0).reshape(2, 3).T,
        torch.arange(10.0)[::3],
        torch.tensor(1.0).expand(4, 2),
        torch.nn.Parameter(torch.ones(2)).detach().requires_grad_(),
    ],
    ids=lambda t: f"{t.dtype}{list(t.shape)}",
)
def test_tensors_come_back_exactly(tmp_path: Path, tensor: torch.Tensor) -> None:
    found = load_checkpoint(save_checkpoint(tmp_path, 1, {"x": tensor}, keep=1))
    assert_same(found["x"], tensor.detach())


def test_plain_values_and_any_keys_come_back_exactly(tmp_path: Path) -> None:
    state = {
        "a.b/c": {"d e": [1, 0.1, -0.0, float("nan"), float("-inf"), None, True, "ü\n", {}]},
        "": [],
        "adam": {0: torch.ones(2), 7: {"betas": (0.9, 0.999)}},
        "__tensor__": "t0000",
        "nested": {"__tuple__": 1, "__items__": [(1, [torch.zeros(1)])]},
        "numpy": 2**127 + 1,
    }
    assert_same(load_checkpoint(save_checkpoint(tmp_path, 1, state, keep=1)), state)


def test_shared_memory_comes_back_equal_but_separate(tmp_path: Path) -> None:
    base = torch.arange(8.0)
    state = {"whole": base, "again": base, "part": base[2:4], "tied": base.view(2, 4)}
    found = load_checkpoint(save_checkpoint(tmp_path, 1, state, keep=1))
    assert_same(found, state)
    found["whole"].zero_()
    assert_same(found["again"], base)


def test_an_optimiser_continues_exactly(tmp_path: Path) -> None:
    def run(n_steps: int, state: Any = None) -> tuple[torch.Tensor, dict[str, Any]]:
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 5))
        optimiser = torch.optim.Adam([parameter], lr=0.1)
        if state is not None:
            parameter.data.copy_(state["parameter"])
            optimiser.load_state_dict(state["optimiser"])
        for _ in range(n_steps):
            optimiser.zero_grad()
            (parameter**4).sum().backward()
            optimiser.step()
        return parameter.detach(), {"parameter": parameter, "optimiser": optimiser.state_dict()}

    path = save_checkpoint(tmp_path, 3, run(3)[1], keep=1)
    assert torch.equal(run(4, load_checkpoint(path))[0], run(7)[0])


def test_extra_files_are_stored_and_verified(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {}, keep=1, files={"config.yaml": "a: ü\n", "b": b"\0"})
    assert (path / "config.yaml").read_text(encoding="utf-8") == "a: ü\n"
    assert (path / "b").read_bytes() == b"\0"
    (path / "config.yaml").write_text("a: o\n")
    with pytest.raises(DamagedFileError, match=r"config\.yaml"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": [0, {"b": {1, 2}}]}, r"state\['a'\]\[1\]\['b'\]: set"),
        ({"f": print}, r"state\['f'\]: builtin"),
        ({"a": {1.5: 0}}, r"state\['a'\]: key 1\.5"),
        ({"a": {True: 0}}, r"state\['a'\]: key True"),
        ({"s": torch.eye(2).to_sparse()}, r"state\['s'\]: .*sparse"),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path: Path, state: Any, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        save_checkpoint(tmp_path / "new", 1, state, keep=1)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["state.json", "a/b", "..", ""])
def test_bad_extra_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="files: "):
        save_checkpoint(tmp_path, 1, {}, keep=1, files={name: ""})


# --- pruning and finding --------------------------------------------------------------------------


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save_checkpoint(tmp_path, step, state_at(step), keep=2)
    assert names(tmp_path) == ["step_10", "step_11"]
    path, state = latest_checkpoint(tmp_path)
    assert (path.name, state["step"]) == ("step_11", 11)


def test_never_prunes_the_one_just_written(tmp_path: Path) -> None:
    for step in (20, 30, 5):  # the run went back to before step 5
        save_checkpoint(tmp_path, step, state_at(step), keep=2)
    assert names(tmp_path) == ["step_30", "step_5"]
    save_checkpoint(tmp_path, 6, state_at(6), keep=1)
    assert names(tmp_path) == ["step_6"]
    with pytest.raises(ValueError, match="keep: 0"):
        save_checkpoint(tmp_path, 7, state_at(7), keep=0)


def test_a_damaged_one_does_not_count_as_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state_at(step), keep=3)
    os.truncate(tmp_path / "step_2" / "tensors.safetensors", 100)
    save_checkpoint(tmp_path, 3, state_at(3), keep=2)
    assert names(tmp_path) == ["step_1", "step_3"]


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step_x").mkdir()
    save_checkpoint(tmp_path, 1, state_at(1), keep=1)
    assert names(tmp_path) == ["notes.txt", "step_1", "step_x"]


def test_same_step_is_replaced(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"x": 1}, keep=1)
    assert load_checkpoint(save_checkpoint(tmp_path, 1, {"x": 2}, keep=1)) == {"x": 2}
    assert names(tmp_path) == ["step_1"]


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="no checkpoint to continue from; found none"):
            latest_checkpoint(folder)
    save_checkpoint(tmp_path, 4, state_at(4), keep=1)
    with pytest.raises(DamagedFileError, match=r"step_5: no such checkpoint.*step_4"):
        load_checkpoint(tmp_path / "step_5")


# --- damage ---------------------------------------------------------------------------------------


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


def fill_with_zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, fill_with_zeros, os.unlink])
def test_damage_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state_at(step), keep=2)
    damage(tmp_path / "step_2" / name)
    with pytest.raises(DamagedFileError, match=f"step_2/{name}: "):
        load_checkpoint(tmp_path / "step_2")
    with caplog.at_level(logging.WARNING):
        path, state = latest_checkpoint(tmp_path)
    assert path.name == "step_1"
    assert_same(state, state_at(1))
    assert f"step_2/{name}" in caplog.text


def test_every_flipped_bit_of_a_small_checkpoint_is_found(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"x": torch.ones(2), "y": 1}, keep=1)
    intact = load_checkpoint(path)
    for name in FILES:
        data = (path / name).read_bytes()
        for i in range(0, len(data), 3):
            (path / name).write_bytes(data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :])
            if name == "manifest.json":  # a changed blank goes unseen, but no changed state
                with contextlib.suppress(DamagedFileError):
                    assert_same(load_checkpoint(path), intact)
            else:
                with pytest.raises(DamagedFileError, match=name):
                    load_checkpoint(path)
        (path / name).write_bytes(data)


def test_only_damaged_ones_is_an_error_naming_them(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, state_at(3), keep=1)
    flip_a_bit(tmp_path / "step_3" / "tensors.safetensors")
    with pytest.raises(ValueError, match=r"found only damaged ones \(step_3\)"):
        latest_checkpoint(tmp_path)


# --- kills ----------------------------------------------------------------------------------------


def in_child(work: Callable[[], None]) -> int:
    """Fork, run `work`, and return the pid; the child exits without a trace of pytest's own."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        try:
            work()
        finally:
            os._exit(0)
    return pid


def assert_all_whole(folder: Path) -> None:
    """Whatever carries a checkpoint's name is one."""
    for path in folder.glob("step_*"):
        assert load_checkpoint(path)["step"] == int(path.name.removeprefix("step_"))


# Every call that changes the disk, by the name the module knows it under.
CALLS = [
    (os, "fsync"),
    (Path, "mkdir"),
    (Path, "rename"),
    (Path, "write_bytes"),
    (Path, "write_text"),
    (shutil, "rmtree"),
    (files, "save_file"),
]


def save_and_die(folder: Path, step: int, at: int, *, after: bool) -> None:
    """Save, but die at (before or after) the `at`-th call that changes the disk."""
    n_calls = 0

    def deadly(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal n_calls
            n_calls += 1
            dies = n_calls == at
            if dies and not after:
                os._exit(9)
            done = original(*arguments, **options)
            if dies:
                os._exit(9)
            return done

        return call

    for owner, name in CALLS:
        setattr(owner, name, deadly(getattr(owner, name)))
    save_checkpoint(folder, step, state_at(step), keep=1)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 1])  # a new step; the same step again
@pytest.mark.parametrize("after", [False, True])
def test_killed_between_any_two_disk_operations(tmp_path: Path, step: int, after: bool) -> None:
    for at in range(1, 100):
        folder = tmp_path / f"at_{at}"
        save_checkpoint(folder, 1, state_at(1), keep=1)
        pid = in_child(lambda at=at, folder=folder: save_and_die(folder, step, at, after=after))
        died = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        assert_all_whole(folder)
        state = latest_checkpoint(folder)[1]  # with keep=1: the old one, or the new one
        assert_same(state, state_at(state["step"]))
        save_checkpoint(folder, 3, state_at(3), keep=1)
        assert names(folder) == ["step_3"]  # nothing of the killed one is left behind
        if not died:
            break
    assert 10 < at < 99


@pytest.mark.slow
def test_killed_at_random_moments_in_a_loop_of_saves(tmp_path: Path) -> None:
    moments = random.Random(0)
    last = 0
    for _ in range(15):
        reader, writer = os.pipe()

        def save_for_ever(start: int = last, out: int = writer) -> None:
            for step in range(start + 1, start + 10_000):
                save_checkpoint(tmp_path, step, state_at(step, n=100_000), keep=2)
                os.write(out, f"{step}\n".encode())

        pid = in_child(save_for_ever)
        os.close(writer)
        reported = os.read(reader, 1)  # waits until one save is finished
        time.sleep(moments.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(reader, "rb") as pipe:
            reported += pipe.read()
        assert_all_whole(tmp_path)
        state = latest_checkpoint(tmp_path)[1]
        assert state["step"] >= int(reported.split()[-1]) > last  # what was reported saved, is
        assert_same(state, state_at(state["step"], n=100_000))
        last = state["step"]


def test_loading_leaves_a_save_in_progress_alone(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state_at(1), keep=1)
    (tmp_path / ".step_2.new").mkdir()
    latest_checkpoint(tmp_path)
    assert names(tmp_path) == [".step_2.new", "step_1"]


# --- a disk that refuses --------------------------------------------------------------------------


@pytest.mark.parametrize(("owner", "name"), [call for call in CALLS if call[1] != "rmtree"])
def test_full_disk_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    save_checkpoint(tmp_path, 1, state_at(1), keep=1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(
            OSError, match=r"No space left on device: could not write .*step_2;"
        ) as e:
            save_checkpoint(tmp_path, 2, state_at(2), keep=1)
    assert e.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["step_1"]
    assert_same(latest_checkpoint(tmp_path)[1], state_at(1))


def test_a_real_refusal_while_tensors_are_written(tmp_path: Path) -> None:
    # The library that writes tensors reports the system's error in its own type and words.
    save_checkpoint(tmp_path, 1, state_at(1), keep=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # bytes per file
    try:
        with pytest.raises(OSError, match=r"File too large: could not write .*step_2;") as caught:
            save_checkpoint(tmp_path, 2, state_at(2, n=100_000), keep=2)
        with pytest.raises(OSError, match="File too large"):
            save_tensors(tmp_path / "t.safetensors", {"x": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert names(tmp_path) == ["step_1"]


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"could not write .*file/checkpoints/step_1"):
        save_checkpoint(tmp_path / "file" / "checkpoints", 1, {}, keep=1)


def test_interrupt_frees_the_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 1, state_at(1), keep=1)
    assert names(tmp_path) == []


# --- single files ---------------------------------------------------------------------------------


def test_files_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = save_checkpoint(tmp_path, 1, state_at(1), keep=1)
    finally:
        os.umask(old)
    assert {oct((path / name).stat().st_mode & 0o777) for name in FILES} == {"0o640"}


def test_nothing_stored_is_code(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state_at(1), keep=1)
    assert names(path) == sorted(FILES)
    assert set(json.loads((path / "manifest.json").read_text())["files"]) == set(FILES[:2])
