"""The folder of a site: nobody's files are touched, and a failed build leaves what was there."""

import json

import pytest

from sae_kit.viz.browser.place import MARKER, building, check

SUBJECT = {"model": "toy", "saes": {"a": 1}}


def fill(out, subject=SUBJECT, content="new"):
    with building(out, subject) as folder:
        (folder / "index.html").write_text(content)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_folder_is_filled(tmp_path, exists):
    out = tmp_path / "deep" / "site"
    if exists:
        out.mkdir(parents=True)
    fill(out)
    assert names(out) == [MARKER, "index.html"]
    assert names(out.parent) == ["site"], "something was left behind"


def test_a_site_of_the_same_subject_is_replaced(tmp_path):
    fill(tmp_path / "site", content="old")
    (tmp_path / "site" / "data").mkdir()
    fill(tmp_path / "site")
    assert names(tmp_path / "site") == [MARKER, "index.html"]
    assert (tmp_path / "site" / "index.html").read_text() == "new"
    assert names(tmp_path) == ["site"]


def test_a_failed_build_leaves_what_was_there(tmp_path):
    fill(tmp_path / "site", content="old")
    with pytest.raises(FileNotFoundError), building(tmp_path / "site", SUBJECT) as folder:
        (folder / "no such folder" / "index.html").write_text("half")
    assert (tmp_path / "site" / "index.html").read_text() == "old"
    assert names(tmp_path) == ["site"]
    with pytest.raises(RuntimeError), building(tmp_path / "other", SUBJECT):
        raise RuntimeError
    assert names(tmp_path) == ["site"]


def other_files(out):
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")


def another_site(out):
    fill(out, {"model": "other", "saes": {}})


def added_files(out):
    fill(out)
    (out / "CNAME").write_text("example.org")


def a_file(out):
    out.write_text("x")


def damaged_marker(out):
    fill(out)
    (out / MARKER).write_text("{")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (other_files, "holds other files .thesis.tex. and nothing was overwritten"),
        (another_site, "holds the site of other SAEs and nothing was overwritten"),
        (added_files, "holds a site and other files .CNAME., which rebuilding would remove"),
        (a_file, "is a file; give a folder"),
        (damaged_marker, "cannot be read"),
    ],
)
def test_what_is_not_the_same_site_is_refused_untouched(tmp_path, prepare, message):
    out = tmp_path / "site"
    prepare(out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message), building(out, SUBJECT):
        pytest.fail("a build was begun")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_the_marker_says_what_the_site_is_about(tmp_path):
    fill(tmp_path / "site")
    assert json.loads((tmp_path / "site" / MARKER).read_text()) == {"subject": SUBJECT}
    check(tmp_path / "site", SUBJECT)
