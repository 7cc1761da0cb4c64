"""Runs train.py as often as a test likes, without an interpreter and its imports each time.

Every run is a process of its own, forked from one that has imported everything and computed
nothing, with the shape checks of the package on. It can be made to die or to run out of disk at
the n-th flush to disk.
"""

import contextlib
import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 120.0
SMALL_FILE = 20_000  # bytes a full disk still takes: configs and logs, no checkpoint


class Run:
    """One run of train.py in progress, and what it says."""

    def __init__(self, runner: "Runner", pid: int, folder: Path) -> None:
        self._runner, self.pid, self._folder = runner, pid, folder
        self.status: int | None = None
        """Exit status once it is over; negative: killed by that signal."""

    @property
    def out(self) -> str:
        """Standard output."""
        return (self._folder / "out").read_text()

    @property
    def err(self) -> str:
        """Standard error."""
        return (self._folder / "err").read_text()

    def over(self) -> bool:
        """Whether it has ended."""
        if self.status is None:
            self.status = self._runner.ask({"poll": self.pid})
        return self.status is not None

    def kill(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        if not self.over():
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit status, once it is over."""
        self.wait_for(lambda: False)
        assert self.status is not None
        return self.status

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds or the run is over."""
        start = time.monotonic()
        while not (condition() or self.over()):
            if time.monotonic() > start + TIMEOUT_S:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"not over after {TIMEOUT_S} s: {self.out}\n{self.err}")
            time.sleep(0.002)


class Runner:
    """The process that runs are forked from."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._n = folder, 0
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": paths,
                "SAE_KIT_CACHE": str(folder / "cache"),
            },
        )

    def start(self, *arguments: str, **options: Any) -> Run:
        """Start `python train.py ARGUMENTS`.

        Options: `cwd`, `env`, `die_at_flush=n`, `disk_full_at_flush=n`, `impatient` (no sleeping
        between attempts to reach a server).
        """
        self._n += 1
        folder = self._folder / f"run_{self._n}"
        folder.mkdir()
        options = {"cwd": str(folder), **options}
        pid = self.ask({"arguments": arguments, "folder": str(folder), **options})
        return Run(self, pid, folder)

    def run(self, *arguments: str, **options: Any) -> Run:
        """`start`, and wait for the end."""
        run = self.start(*arguments, **options)
        run.wait()
        return run

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


# --- in the process that forks --------------------------------------------------------------------


def serve() -> None:
    """Answer requests from standard input until it is closed."""
    from jaxtyping import install_import_hook

    with install_import_hook("sae_kit", "beartype.beartype"):
        for module in ("torch._dynamo", "sae_kit.jobs.train"):  # the first optimiser imports it
            importlib.import_module(module)
        for family in importlib.import_module("sae_kit.config").Family.__subclasses__():
            family.variants()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                be_train_py(request)
        print(json.dumps(answer), flush=True)


def be_train_py(request: dict[str, Any]) -> None:
    """What the forked process does, to its end."""
    folder = Path(request["folder"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.environ.update(request.get("env", {}))
    if request.get("impatient"):
        time.sleep = lambda _: None
    if n := request.get("die_at_flush"):
        at_flush(n, lambda: os.kill(os.getpid(), signal.SIGKILL))
    if n := request.get("disk_full_at_flush"):
        at_flush(n, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILE, SMALL_FILE)))
    script = str(ROOT / "train.py")
    sys.argv = [script, *request["arguments"]]
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if loky := sys.modules.get("joblib.externals.loky"):
        loky.get_reusable_executor().shutdown()  # _exit would leave its workers behind
    os._exit(status)


def at_flush(n: int, act: Callable[[], None]) -> None:
    """Have `act` called at the n-th flush of a file or folder to disk."""
    fsync, n_flushes = os.fsync, 0

    def counted(descriptor: int) -> None:
        nonlocal n_flushes
        n_flushes += 1
        if n_flushes == n:
            act()
        fsync(descriptor)

    os.fsync = counted


if __name__ == "__main__":
    serve()
