"""Pairs as tensors: aligned, disjoint, and the same words in one column."""

import json
import logging
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from sae_kit.data.pairs import FAMILIES, Pairs, draw_pairs
from sae_kit.models.tokenizer import Tokenizer

N_VOCAB = 1900


def draw(
    task: str, tokenizer: Tokenizer, *, n: int = 12, n_heldout: int = 8, seed: int = 0
) -> tuple[Pairs, Pairs]:
    return draw_pairs(
        task, tokenizer, n=n, n_heldout=n_heldout, n_vocab=N_VOCAB, prepend_bos=True, seed=seed
    )


@pytest.mark.parametrize("task", FAMILIES)
def test_pairs_are_aligned_and_held_out_ones_are_others(
    task: str, word_tokenizer: Tokenizer
) -> None:
    found, heldout = draw(task, word_tokenizer)
    assert (len(found), len(heldout)) == (12, 8)
    assert found.clean.shape == found.corrupt.shape == (12, found.n_pos)
    assert heldout.n_pos == found.n_pos
    rows = {tuple(row) for pairs in (found, heldout) for row in pairs.clean.tolist()}
    assert len(rows) == 20
    assert (found.clean[:, 0] == word_tokenizer.eot_id).all()
    assert [column.name for column in found.columns if column.name not in ("*", "BOS")]
    assert found.answers.any(1).all()
    assert not (found.answers & found.wrong).any()


@pytest.mark.parametrize("task", FAMILIES)
def test_columns_are_every_position_once(task: str, word_tokenizer: Tokenizer) -> None:
    found, _ = draw(task, word_tokenizer)
    at = torch.stack([column.at for column in found.columns], 1)
    assert torch.equal(at.sort(1).values, torch.arange(found.n_pos).expand(12, -1))
    assert torch.equal(at[0], torch.arange(found.n_pos))


def test_a_column_is_the_same_part_of_the_sentence(word_tokenizer: Tokenizer) -> None:
    found, _ = draw("ioi", word_tokenizer)
    by_name = {column.name: column.at for column in found.columns}
    io, s1, s2 = (
        found.clean.gather(1, by_name[name][:, None])[:, 0] for name in ("IO", "S1", "S2")
    )
    assert torch.equal(s1, s2)
    assert (by_name["IO"] < by_name["S1"]).unique().numel() == 2, "one order only"
    assert torch.equal(found.answers.nonzero()[:, 1], io)
    assert torch.equal(found.wrong.nonzero()[:, 1], s1)
    assert "BOS" in by_name
    assert "end" in by_name


def test_pairs_can_be_chosen(word_tokenizer: Tokenizer) -> None:
    found, _ = draw("ioi", word_tokenizer)
    chosen = found.select(torch.tensor([5, 2]))
    assert torch.equal(chosen.corrupt, found.corrupt[[5, 2]])
    assert torch.equal(chosen.wrong, found.wrong[[5, 2]])
    assert torch.equal(chosen.columns[1].at, found.columns[1].at[[5, 2]])
    assert len(found.select(slice(3, 6))) == 3


def test_the_same_seed_draws_the_same_pairs(word_tokenizer: Tokenizer) -> None:
    first, _ = draw("ioi", word_tokenizer)
    again, _ = draw("ioi", word_tokenizer)
    other, _ = draw("ioi", word_tokenizer, seed=1)
    assert torch.equal(first.clean, again.clean)
    assert first.clean.tolist() != other.clean.tolist()


NAMES = ["Mary", "John", "Tom", "Anna", "Paul", "Jack"]


def pairs_file(folder: Path) -> str:
    """Five pairs of three names, and a longer one."""
    lines = [
        {"clean": f" {a} {b} {b}", "corrupt": f" {b} {a} {b}", "answer": f" {a}", "wrong": f" {b}"}
        for a, b in pairwise(NAMES)
    ]
    lines.append({**lines[0], "clean": " Mary John John Tom", "corrupt": " Tom John John Tom"})
    lines.append(lines[0])  # the first one again
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return str(file)


def test_pairs_of_a_file(
    tmp_path: Path, word_tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found, heldout = draw(pairs_file(tmp_path), word_tokenizer, n=3, n_heldout=2)
    assert "1 of 7 pairs are left out" in caplog.text
    rows = torch.cat([found.clean, heldout.clean])[:, 1:].tolist()
    assert len(rows) == 5
    texts = {word_tokenizer.decode(row) for row in rows}
    assert texts == {f" {a} {b} {b}" for a, b in pairwise(NAMES)}
    assert [column.name for column in found.columns] == ["BOS", "*", "*", "end"]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, word_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"has 5 different pairs .* takes 6; ask for fewer"):
        draw(pairs_file(tmp_path), word_tokenizer, n=3, n_heldout=3)
    with pytest.raises(ValueError, match="'greater' is unknown; give greater_than"):
        draw("greater", word_tokenizer)
