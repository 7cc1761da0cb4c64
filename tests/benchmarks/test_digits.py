"""The script that takes a network apart which reads digits: its pictures, and what it measures."""

import dataclasses
import json
import runpy
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "digits.py"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def tiny(script):
    return script["Setting"](side=7, d_hidden=6, n_train=200, n_test=40, n_steps=20, batch_rows=50)


def test_every_typeface_has_ten_different_digits(script):
    drawn = script["templates"](14).flatten(2)
    assert drawn.shape[:2] == (len(script["typefaces"]()), 10)
    for face in drawn:
        assert torch.cdist(face, face).fill_diagonal_(1.0).min() > 0.1
        assert (face.sum(1) > 1).all()


def test_equal_seeds_draw_equal_pictures(script, tiny):
    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return script["pictures"](30, tiny, torch.Generator().manual_seed(seed))

    (x, digits), (again, same), (other, _) = draw(0), draw(0), draw(1)
    assert x.shape == (30, 49)
    assert torch.equal(x, again)
    assert torch.equal(digits, same)
    assert not torch.equal(x, other)


def test_without_noise_or_training_a_picture_is_a_moved_template(script, tiny):
    clean = dataclasses.replace(tiny, noise=0.0)
    x, _ = script["pictures"](30, clean, torch.Generator().manual_seed(0))
    assert 0 <= x.min() <= x.max() <= 1


def test_what_it_writes_hangs_together(script, tiny, tmp_path, monkeypatch):
    main = script["main"]
    printed: list[str] = []
    monkeypatch.setitem(main.__globals__, "Setting", lambda: tiny)
    monkeypatch.setitem(main.__globals__, "print", printed.append)
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "--folder", str(tmp_path / "new")])
    main()
    folder = tmp_path / "new"
    assert {path.name for path in folder.iterdir()} == {
        "kept.png", "edges.png", "graph.png", "rows.jsonl"
    }  # fmt: skip
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    network, edges = rows[0], [row for row in rows if row["kind"] == "edges"]
    assert len(edges) == 9
    assert all(0 <= row["n_needed"] <= row["n_edges"] for row in edges)
    whole = [row for row in rows if (row.get("basis"), row.get("k")) == ("neurons", 6)]
    assert whole[-1]["accuracy"] == pytest.approx(network["accuracy_heldout"])
    pixels = next(line for line in printed[0].splitlines() if line.startswith("pixels"))
    assert [int(n) for n in pixels.split()[1:]] == [row["n_needed"] for row in edges[::3]]
