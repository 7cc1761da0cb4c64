"""What is kept of an evaluation that was interrupted, and for whom."""

import dataclasses

import pytest
import torch
import toy_subject

from sae_kit.evals.core import Core
from sae_kit.evals.shared.kept import Kept, Part

PIECE = {"y": torch.arange(6.0).view(2, 3), "x": torch.tensor([], dtype=torch.int64)}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_KIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def subject(tmp_path):
    (tmp_path / "text").mkdir()
    return toy_subject.subject(tmp_path / "text")


def test_pieces_come_back_as_they_were(tmp_path):
    part = Part(tmp_path / "some" / "part")
    assert part.get(3) is None
    part.put(3, PIECE)
    again = part.get(3)
    assert list(again) == list(PIECE), "in their order"
    assert all(torch.equal(again[name], PIECE[name]) for name in PIECE)
    assert part.get(2) is None


def test_a_damaged_piece_is_as_good_as_none(tmp_path):
    part = Part(tmp_path)
    part.put(0, PIECE)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert part.get(0) is None


def test_nothing_is_kept_without_a_folder():
    part = Part(None)
    part.put(0, PIECE)
    assert part.get(0) is None


def test_an_interruption_keeps_everything_and_the_end_nothing(subject):
    def interrupted() -> None:
        with Kept.of(Core(), subject) as kept:
            kept.part("curves").put(0, PIECE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with Kept.of(Core(), subject) as kept:
        assert kept.part("curves").get(0) is not None
        assert kept.part("bars").get(0) is None
    assert not kept.folder.exists()


def test_another_question_or_subject_has_another_folder(subject):
    sites = toy_subject.SITES
    other_weights = {site: subject.saes[site] for site in reversed(sites)}
    other_weights = dict(zip(sites, other_weights.values(), strict=True))
    folders = {
        Kept.of(evaluation, about).folder
        for evaluation, about in [
            (Core(), subject),
            (Core(n_tokens=1 << 20), subject),
            (Core(), dataclasses.replace(subject, seed=1)),
            (Core(), dataclasses.replace(subject, saes=other_weights)),
        ]
    }
    assert len(folders) == 4
    assert Kept.of(Core(), subject).folder in folders
