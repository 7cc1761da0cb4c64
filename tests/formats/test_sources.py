import pytest

from sae_kit.formats.hub import HubPlace
from sae_kit.formats.places import LocalPlace
from sae_kit.formats.releases import releases
from sae_kit.formats.sources import open_source

RES_JB = "gpt2-small-res-jb"


@pytest.fixture
def listed(monkeypatch) -> list[str]:
    """The files of every repository; whoever asks for more than their names fails."""
    names = ["saes/blocks.0.hook_resid_pre/cfg.json", "saes/blocks.11.hook_resid_pre/cfg.json"]

    def listing(self):
        return type("Listing", (), {"names": tuple(names), "commit": "c", "from_cache": False})

    monkeypatch.setattr("sae_kit.formats.hub.Repository.listing", property(listing))
    return names


def test_what_exists_here_is_a_local_place(tmp_path, monkeypatch):
    for folder in ("owner/name", RES_JB):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for source in ("owner/name", RES_JB):
        place = open_source(source)
        assert isinstance(place, LocalPlace)
        assert place.where == source
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("~/owner").where == (tmp_path / "owner").as_posix()
    with pytest.raises(ValueError, match="revision: 'v1' has no meaning for owner/name, which is"):
        open_source("owner/name", "v1")


@pytest.mark.parametrize("spelling", ["owner/name", "hf:owner/name"])
def test_repositories_and_folders_of_them(spelling, listed):
    place = open_source(spelling)
    assert isinstance(place, HubPlace)
    assert place.where == "hf:owner/name"
    site = f"{spelling}/saes/blocks.11.hook_resid_pre"
    assert open_source(site).where == "hf:owner/name/saes/blocks.11.hook_resid_pre"
    assert open_source(f"{spelling}/saes/").names() == tuple(n[5:] for n in listed)
    with pytest.raises(
        ValueError, match=r"hf:owner/name: has no .* 'blocks.11.hook'; it has saes/b"
    ):
        open_source(f"{spelling}/blocks.11.hook")


def test_hf_is_never_a_local_folder(tmp_path, monkeypatch, listed):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_source("hf:owner/name"), HubPlace)


def test_releases_stand_for_their_repositories(listed):
    release = releases()[RES_JB]
    listed[:] = [f"{sae.path}/cfg.json" for sae in release.saes] + ["other/cfg.json"]
    place = open_source(RES_JB)
    assert place.where == f"hf:{release.repo}"
    assert set(place.names()) == {f"{sae.path}/cfg.json" for sae in release.saes}
    one = open_source(f"{RES_JB}/blocks.11.hook_resid_post")
    assert one.where == f"hf:{release.repo}/blocks.11.hook_resid_post"
    assert one.known().site == "blocks.11.hook_resid_post"
    assert one.known().metadata["model_from_pretrained_kwargs"] == {"center_writing_weights": True}
    with pytest.raises(ValueError, match=r"has no SAE 'blocks.3.resid_pre'; it has 13, such as bl"):
        open_source(f"{RES_JB}/blocks.3.resid_pre")


@pytest.mark.parametrize(
    "source", ["absent", "../absent", "./a/b", "/a/b", "~/a", "a/..", "hf:", "hf:a", "hf:/a/b", ""]
)
def test_what_is_nothing_is_named(source, tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with pytest.raises(ValueError, match=r": no such folder; give .* or hf:owner/name"):
        open_source(source or "absent/")


def test_a_path_is_a_path(tmp_path, monkeypatch, listed):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"owner/name: no such folder; give"):
        open_source(Path("owner/name"))
    with pytest.raises(ValueError, match=r"-jb: no such folder; give .* \(perhaps gpt2-small-res-"):
        open_source(Path(RES_JB))


def test_near_misses_of_releases_are_named():
    with pytest.raises(ValueError, match=r"a release \(perhaps gpt2-small-res-jb, "):
        open_source("gpt2-small-resjb")
