"""A language model at several moments of its training, each a model of its own on disk.

A run keeps them in `snapshots/step_<n>/`: weights and tokenizer in Hugging Face layout, which
`load_model` reads as any other model, and `snapshot.json`, which says when it was. Unlike a
checkpoint, a snapshot cannot be trained on exactly, takes a third of the space and is never pruned.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from sae_kit.config import from_node
from sae_kit.files import write_atomic
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.pretrained import save_model
from sae_kit.models.tokenizer import Tokenizer

SNAPSHOTS = "snapshots"
"""Name of the folder in a run folder that holds them."""
MOMENT = "snapshot.json"

_FOLDER = re.compile(r"step_(\d+)")


@final
@dataclass(frozen=True, kw_only=True)
class Moment:
    """When a snapshot was taken."""

    step: int
    """Finished steps; 0: the initial weights."""
    n_tokens: int
    """Tokens that the run had trained on."""


def save_snapshot(model: GPT2, tokenizer: Tokenizer, run: Path, moment: Moment) -> None:
    """Write a snapshot into the run folder `run`.

    Raises:
        OSError: the disk refused.
    """
    folder = run / SNAPSHOTS / f"step_{moment.step}"
    save_model(model, tokenizer, folder)
    # Last, so that a snapshot that says when it was is whole.
    write_atomic(folder / MOMENT, json.dumps(asdict(moment)) + "\n")


def find_snapshots(run: Path) -> dict[Path, Moment]:
    """The folders of a run's snapshots, the first one first; empty if it has none.

    Raises:
        ValueError: one does not say when it was.
    """
    if not (run / SNAPSHOTS).is_dir():
        return {}
    folders = [path for path in (run / SNAPSHOTS).iterdir() if _FOLDER.fullmatch(path.name)]
    found = {folder: _moment(folder / MOMENT) for folder in folders}
    return dict(sorted(found.items(), key=lambda item: item[1].step))


def _moment(file: Path) -> Moment:
    try:
        return from_node(Moment, json.loads(file.read_text(encoding="utf-8")), where=str(file))
    except OSError as error:
        raise ValueError(
            f"{file}: {error.strerror}; the snapshot beside it was not finished, delete it"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: damaged: {error}") from error
