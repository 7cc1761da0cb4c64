"""Results: saved as plain files, read back the same, printed as a table."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_kit.result import Result


def example() -> Result:
    return Result(
        name="core",
        scalars={"fvu": 0.1, "n": 3, "ratio": math.nan, "huge": math.inf},
        rows=(
            {"site": "blocks.0", "l0": 16.25, "dead": 0, "ok": True},
            {"site": "a,b\n", "l0": math.nan, "late": 1e-7},
        ),
        arrays={"hist/a.b": torch.arange(6).reshape(2, 3).T, "curve": torch.rand(3).bfloat16()},
        provenance={"git": None, "versions": {"torch": "2"}, "command": "x y", "sites": ("a",)},
    )


def test_save_and_load_are_inverse(tmp_path: Path) -> None:
    result = example()
    result.save(tmp_path / "made" / "here")
    found = Result.load(tmp_path / "made" / "here")
    assert found.name == "core"
    assert found.scalars["fvu"] == 0.1
    assert found.scalars["n"] == 3
    assert found.rows[0] == result.rows[0]
    assert type(found.rows[0]["dead"]) is int
    assert found.rows[1]["late"] == 1e-7
    assert found.provenance == {**result.provenance, "sites": ["a"]}
    assert set(found.arrays) == set(result.arrays)
    for name, array in result.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        assert torch.equal(found.arrays[name], array)


def test_what_is_not_finite_is_null_in_the_file_and_nan_in_memory(tmp_path: Path) -> None:
    example().save(tmp_path)

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    plain = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert list(plain) == ["name", "scalars", "rows", "provenance"]
    assert plain["scalars"]["ratio"] is plain["scalars"]["huge"] is plain["rows"][1]["l0"] is None
    found = Result.load(tmp_path)
    assert math.isnan(found.scalars["ratio"])
    assert math.isnan(found.scalars["huge"])
    assert math.isnan(found.rows[1]["l0"])
    assert found.provenance["git"] is None  # only numbers become NaN


def test_csv_has_every_column_and_full_precision(tmp_path: Path) -> None:
    example().save(tmp_path)
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["site", "l0", "dead", "ok", "late"]
    assert rows[1]["site"] == "a,b\n"
    assert float(rows[1]["late"]) == 1e-7
    assert rows[0]["late"] == ""


def test_saving_again_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    example().save(tmp_path)
    Result("empty").save(tmp_path)
    found = Result.load(tmp_path)
    assert (found.name, found.scalars, found.rows, found.arrays) == ("empty", {}, (), {})
    assert (tmp_path / "table.csv").read_text() == ""


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"scalars": {"x": torch.tensor(1.0)}}, r"(?s)scalars.*'x'"),
        ({"rows": ({"a": 1}, {"a": [1]})}, r"rows\[1\]\['a'\]: list"),
        ({"rows": ({"a": None},)}, r"rows\[0\]\['a'\]: NoneType"),
        ({"arrays": {"a": [1.0]}}, r"(?s)arrays.*'a'"),
    ],
)
def test_what_cannot_be_saved_is_refused_at_once(change: dict[str, Any], where: str) -> None:
    with pytest.raises(TypeError, match=where):
        Result("x", **change)


def test_damaged_or_absent_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"result\.json: no result there"):
        Result.load(tmp_path)
    example().save(tmp_path)
    (tmp_path / "arrays.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"arrays\.safetensors: cannot be read"):
        Result.load(tmp_path)
    for text, message in (("{", "damaged"), ("[1]", "not a result"), ("{}", "not a result")):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(ValueError, match=rf"result\.json: {message}"):
            Result.load(tmp_path)


def test_table_is_aligned() -> None:
    rows = ({"site": "a", "l0": 16.0, "n": 5}, {"site": "bcd", "l0": 0.123456, "note": "x"})
    assert Result("t", rows=rows).table() == (
        "site      l0  n  note\n"
        "a         16  5\n"
        "bcd   0.1235     x"
    )  # fmt: skip


def test_a_wide_table_is_cut_and_every_part_says_of_what_it_is() -> None:
    rows = (
        {"site": "a", "arch": "topk", "l0": 16.0, "fvu": 0.25, "n": 5},
        {"site": "bcd", "arch": "relu", "l0": 8.0, "fvu": 0.5, "n": 60},
    )
    result = Result("t", rows=rows)
    assert result.table(21) == (
        "site  arch  l0   fvu\n"
        "a     topk  16  0.25\n"
        "bcd   relu   8   0.5\n"
        "\n"
        "site  arch   n\n"
        "a     topk   5\n"
        "bcd   relu  60"
    )  # fmt: skip
    assert result.table(10_000) == result.table()
    for width in range(1, 30):
        parts = result.table(width).split("\n\n")
        columns = [part.splitlines()[0].split() for part in parts]
        assert [name for part in columns for name in part[2:]] == ["l0", "fvu", "n"]
        assert all(part[:2] == ["site", "arch"] for part in columns)
        longest = max(map(len, result.table(width).splitlines()))
        assert longest <= max(width, len("site  arch  0.25"))


def test_table_without_leading_text_repeats_its_first_column() -> None:
    rows = ({"layer": 3, "a": 1, "b": 2},)
    assert Result("t", rows=rows).table(8) == "layer  a\n    3  1\n\nlayer  b\n    3  2"


def test_table_of_scalars_where_there_are_no_rows() -> None:
    assert Result("t", scalars={"fvu": 0.25, "n": 10}).table() == (
        "scalar  value\n"
        "fvu      0.25\n"
        "n          10"
    )  # fmt: skip


def test_results_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        example().name = "other"
