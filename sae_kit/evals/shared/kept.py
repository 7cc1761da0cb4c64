"""Parts of a long evaluation that are done, kept on disk until the whole of it is.

An evaluation that was interrupted finds what it had finished when the same command is given again:
same settings, same subject (weights included), same versions. When it is done, nothing stays.

    with Kept.of(self, subject) as kept:
        curves = respond(..., kept=kept.part("curves"))

Limits: what an evaluation that is never finished leaves behind lies in the cache folder, which can
be deleted at any time.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import final

from torch import Tensor

from sae_kit import config
from sae_kit.data.cache_manifest import weights_hash
from sae_kit.data.tokens import cache_folder
from sae_kit.evals.base import Evaluation, Subject
from sae_kit.files import DamagedFileError, load_tensors, save_tensors


@final
@dataclass(frozen=True)
class Part:
    """Numbered pieces of one part of an evaluation."""

    folder: Path | None
    """None: nothing is kept."""

    def part(self, name: str) -> "Part":
        """A part of this part."""
        return Part(None if self.folder is None else self.folder / name)

    def get(self, number: int) -> dict[str, Tensor] | None:
        """Piece `number`, in the order of its names, or None if it is not there, whole."""
        if self.folder is None or not (file := self._file(number)).is_file():
            return None
        try:
            tensors = load_tensors(file)
        except DamagedFileError:
            return None
        return {name.partition(" ")[2]: tensors[name] for name in sorted(tensors)}

    def put(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep piece `number`.

        Raises:
            OSError: the disk refused.
        """
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The file forgets the order of its tensors, and rows are made in it.
            numbered = {f"{i:06d} {name}": one for i, (name, one) in enumerate(tensors.items())}
            save_tensors(self._file(number), numbered)

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:06d}.safetensors"


@final
class Kept:
    """The kept parts of one evaluation of one subject; entered while it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def of(evaluation: Evaluation, subject: Subject) -> "Kept":
        """What is kept of this evaluation of this subject."""
        provenance = config.provenance()
        identity = {
            "evaluation": config.to_dict(evaluation),
            "subject": subject.description(),
            "weights": weights_hash(subject.model),
            "saes": [weights_hash(sae) for one in subject.sets for sae in one.saes.values()],
            "versions": provenance["versions"],
            "git": provenance["git"],
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return Kept(cache_folder() / "evaluations" / f"{evaluation.word}_{digest[:16]}")

    def part(self, name: str) -> Part:
        """The part of this name."""
        return Part(self.folder / name)

    def __enter__(self) -> "Kept":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Done: nothing has to be kept any more. Interrupted: everything stays."""
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)
