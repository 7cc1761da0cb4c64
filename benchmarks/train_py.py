"""How the benchmarks of this folder start train.py."""

import sys
from collections.abc import Sequence
from pathlib import Path

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


def command(folder: Path, overrides: Sequence[str]) -> list[str]:
    """The command of a run in `folder`; of one that is there already, what goes on with it."""
    started = (folder / "config.yaml").is_file()
    options = [f"resume={folder}"] if started else [*overrides, f"hydra.run.dir={folder}"]
    return [sys.executable, str(TRAIN), *options]
