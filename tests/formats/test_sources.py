import pytest

from sae_kit.formats.places import LocalPlace
from sae_kit.formats.sources import open_source


def test_what_exists_here_is_a_local_place(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    place = open_source("owner/name")
    assert isinstance(place, LocalPlace)
    assert place.where == "owner/name"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("~/owner").where == (tmp_path / "owner").as_posix()


def test_what_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent: no such folder; give"):
        open_source(tmp_path / "absent")
