import zipfile

import pytest
import torch

from sae_kit.formats.places import LocalPlace
from sae_kit.formats.zips import fill, open_zip


@pytest.fixture
def place(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("one", b"1" * 100)
        file.writestr("two", b"2")
    return LocalPlace(tmp_path)


def opened(place, name="a.zip", *, expansion=1):
    return open_zip(place, name, expansion=expansion, remedy="give another")


def test_members_and_their_sizes(place):
    with opened(place) as members:
        assert members.sizes == {"one": 100, "two": 1}
        assert members.read("two") == b"2"
        assert members.open("one").read() == b"1" * 100


def test_a_wrong_checksum_is_noticed(place, tmp_path):
    raw = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(raw.replace(b"1" * 100, b"1" * 99 + b"0"))
    with opened(place) as members, pytest.raises(zipfile.BadZipFile, match="CRC"):
        members.read("one")


@pytest.mark.parametrize(
    ("share", "message"), [(0.0, "is no zip file"), (0.5, "is damaged or cut"), (0.95, "is damage")]
)
def test_truncated_files_are_named(share, message, place, tmp_path):
    raw = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(ValueError, match=rf"a\.zip: {message}"), opened(place):
        pass


def test_absent_and_other_files_are_named(place, tmp_path):
    (tmp_path / "b.zip").write_text("a text")
    with (
        pytest.raises(ValueError, match=r"b\.zip: is no zip file; give another"),
        opened(place, "b.zip"),
    ):
        pass
    with pytest.raises(ValueError, match=r"c\.zip: is missing"), opened(place, "c.zip"):
        pass


def test_a_name_may_occur_once(place, tmp_path):
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(tmp_path / "a.zip", "a") as file,
    ):
        file.writestr("one", b"other")
    with pytest.raises(ValueError, match=r"has 2 members named 'one'"), opened(place):
        pass


def test_compression_is_allowed_within_a_bound(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("one", bytes(1 << 20))
    place = LocalPlace(tmp_path)
    with pytest.raises(ValueError, match="'one' is compressed"), opened(place):
        pass
    with pytest.raises(ValueError, match="members of 1,048,576"), opened(place, expansion=100):
        pass
    with opened(place, expansion=1000) as members:
        assert members.read("one") == bytes(1 << 20)


def test_methods_that_are_not_known_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as file:
        file.writestr("one", b"x")
    with (
        pytest.raises(ValueError, match="'one' is compressed"),
        opened(LocalPlace(tmp_path), expansion=100),
    ):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3, 4)])
def test_tensors_are_filled_from_their_bytes(dtype, shape, tmp_path):
    source = (torch.arange(12.0)[: max(1, 12 if shape else 1)] > 5).to(dtype)
    source = source[:0].view(shape) if 0 in shape else source.view(shape)
    raw = source.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    (tmp_path / "raw").write_bytes(raw)
    target = torch.ones(shape).to(dtype)
    with (tmp_path / "raw").open("rb") as stream:
        fill(target, stream.read)
    assert torch.equal(target, source)


@pytest.mark.parametrize(("n_bytes", "message"), [(7, "7 bytes instead of 8"), (9, "more than 8")])
def test_streams_of_another_length_are_refused(n_bytes, message, tmp_path):
    (tmp_path / "raw").write_bytes(bytes(n_bytes))
    with (tmp_path / "raw").open("rb") as stream, pytest.raises(EOFError, match=message):
        fill(torch.ones(2), stream.read)
