"""What the tests of evaluations share: a folder for text, and a token cache of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_subject

from sae_kit.evals.base import Subject


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For the text of a subject; keeps tokenised text out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def subject(folder: Path) -> Subject:
    """A random model with random SAEs at three sites."""
    return toy_subject.subject(folder)
