import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_kit.formats import places
from sae_kit.formats.places import LocalPlace, refuse


@pytest.fixture
def place(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "cfg.json").write_text('{"d_in": 4}')
    (tmp_path / "a" / "b" / "w.safetensors").write_bytes(b"")
    (tmp_path / ".hidden").write_text("")
    return LocalPlace(tmp_path)


def test_files_are_named_relative_to_the_place(place, tmp_path):
    assert place.names() == ("a/b/w.safetensors", "cfg.json")
    assert place.at("a").names() == ("b/w.safetensors",)
    assert place.path("cfg.json") == tmp_path / "cfg.json"
    assert place.has("cfg.json")
    assert not place.has("b/w.safetensors")


def test_a_file_is_a_place_too(place, tmp_path):
    one = place.at("cfg.json")
    assert one.names() == ("cfg.json",)
    assert one.path("cfg.json") == tmp_path / "cfg.json"
    assert one.file("cfg.json") == one.where == (tmp_path / "cfg.json").as_posix()


def test_files_beside_a_file(place, tmp_path):
    one = place.at("cfg.json")
    assert one.beside("other.json") is None
    assert one.beside("a") is None  # a folder
    (tmp_path / "other.json").write_text('{"d_in": 5}')
    assert one.beside("other.json").json("other.json") == {"d_in": 5}


def test_folders_that_lead_in_a_circle_end(place, tmp_path):
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert max(name.count("/") for name in place.names()) < places.MAX_DEPTH


def test_links_of_files_are_followed_and_those_of_folders_are_not(place, tmp_path):
    """The hub's cache is made of the former; the latter may lead anywhere."""
    (tmp_path / "to_file").symlink_to("cfg.json")
    (tmp_path / "to_root").symlink_to("/")
    (tmp_path / "to_nothing").symlink_to("nowhere")
    assert place.names() == ("a/b/w.safetensors", "cfg.json", "to_file")


def test_folders_of_too_many_files_are_refused(place, monkeypatch):
    monkeypatch.setattr(places, "MAX_FILES", 2)
    assert len(place.names()) == 2
    monkeypatch.setattr(places, "MAX_FILES", 1)
    with pytest.raises(ValueError, match=r"has over 1 files below it; give a folder that is near"):
        place.names()


def test_what_is_neither_file_nor_folder_is_empty():
    assert LocalPlace(Path("/dev/null")).names() == ()


def test_messages_quote_only_so_much_of_a_file():
    with pytest.raises(ValueError, match=r"^x: a{600}\.\.\.; give another$"):
        refuse("x", "a" * 10_000, "give another")


def test_json_is_an_object(place, tmp_path):
    assert place.json("cfg.json") == {"d_in": 4}
    (tmp_path / "cfg.json").write_text('{"a": ' * 63 + "1" + "}" * 63)
    assert place.json("cfg.json").keys() == {"a"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "is not a JSON object"),
        ("\x00", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"a": ' * 65 + "1" + "}" * 65, "is over 64 levels deep"),
        ('{"a": ' + "[" * 400 + "]" * 400 + "}", "is over 64 levels deep"),
        (json.dumps({"a": "b" * (1 << 24)}), "has 16,777,2.. bytes"),
    ],
)
def test_what_is_no_json_object_is_named(text, message, place, tmp_path):
    (tmp_path / "cfg.json").write_text(text)
    with pytest.raises(ValueError, match=rf"cfg\.json: {message}"):
        place.json("cfg.json")


def test_bytes_that_are_no_text(place, tmp_path):
    (tmp_path / "cfg.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"cfg\.json: cannot be read as JSON \(UnicodeDecodeError"):
        place.json("cfg.json")


def test_absent_files_are_named(place):
    with pytest.raises(ValueError, match=r"other\.json: is missing; put it beside"):
        place.json("other.json")
    with pytest.raises(ValueError, match=r"other\.safetensors: is missing; put it beside"):
        place.header("other.safetensors")


def test_headers_are_read_without_the_tensors(place, tmp_path):
    file = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(2, 3), "n": torch.ones((), dtype=torch.float64)}, file)
    assert place.header("w.safetensors") == {"x": ("F32", (2, 3)), "n": ("F64", ())}


def test_a_damaged_header_is_named(place):
    with pytest.raises(ValueError, match=r"w\.safetensors: is damaged or cut short"):
        place.header("a/b/w.safetensors")
