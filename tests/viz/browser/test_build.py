"""A whole site: its files, that it is the same again, and what its scripts may contain."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import toy_results
from read_shard import read_shard

from sae_kit.viz.browser.build import PAGE, build

SCRIPTS = sorted((PAGE / "script").glob("*.js"))


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_equal_results_make_equal_sites_in_any_order(site, tmp_path):
    build([toy_results.evolution(), toy_results.dashboard()], tmp_path / "again")
    assert files(site) == files(tmp_path / "again")


def test_a_site_can_be_rebuilt_in_its_place(tmp_path):
    build([toy_results.dashboard()], tmp_path / "site")
    first = files(tmp_path / "site")
    build([toy_results.dashboard()], tmp_path / "site")
    assert files(tmp_path / "site") == first


def test_a_damaged_result_leaves_no_site(tmp_path):
    evolution = toy_results.evolution()
    name = next(name for name in evolution.arrays if name.endswith("/index"))
    arrays = {**evolution.arrays, name: torch.tensor([[0, 700]])}
    with pytest.raises(ValueError, match="row 0 is"):
        build([dataclasses.replace(evolution, arrays=arrays)], tmp_path / "site")
    assert list(tmp_path.iterdir()) == []


def test_every_combination_is_listed(site, single):
    rows = read_shard(site, "booleans")
    assert [row[:2] for row in rows] == [[0, 1], [0, 1], [1, 0], [1, 0]]
    assert [member[:2] for member in rows[0][2:]] == [[0, 0], [0, 1], [1, 2]]
    assert not (single / "data" / "booleans.js").exists()


def test_the_page_names_every_script_and_style_once_and_nothing_from_elsewhere():
    html = (PAGE / "index.html").read_text("utf-8")
    named = re.findall(r'(?:src|href)="(page/[^"]+)"', html)
    own = [
        path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*.*") if path.suffix != ".html"
    ]
    assert sorted(named) == sorted(f"page/{path}" for path in own)
    assert not re.search(r"https?://", html)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short_and_never_make_markup_of_text(path):
    source = path.read_text("utf-8")
    assert source.startswith('"use strict";')
    assert source.count("\n") < 400
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\("
    assert not re.findall(unsafe, source)


def test_results_of_more_and_of_fewer_sites_are_the_same_subject_in_any_order(tmp_path):
    some = {site: toy_results.subject()["saes"][site] for site in toy_results.SITES[:2]}
    few, many = toy_results.evolution(saes=some), toy_results.dashboard()
    kept = {name: x for name, x in few.arrays.items() if toy_results.SITES[2] not in name}
    few = dataclasses.replace(few, arrays=kept)
    build([few, many], tmp_path / "site")
    first = files(tmp_path / "site")
    build([many, few], tmp_path / "site")
    assert files(tmp_path / "site") == first
