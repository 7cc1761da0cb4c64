import io
import os
import zipfile

import numpy as np
import pytest
import torch

from sae_kit.formats.npz import _NAMES, peek_npz, read_npz
from sae_kit.formats.places import LocalPlace
from sae_kit.formats.tensors import header_of

ARRAYS = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "columns": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
    "deep": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3), dtype=np.float16),
    **{name: np.array([0, 1]).astype(name) for name in _NAMES},
}


def refused(place, message):
    for open_ in (peek_npz, read_npz):
        with pytest.raises(ValueError, match=rf"x\.npz: .*{message}"):
            open_(place, "x.npz")


def raw(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def archive(tmp_path, members):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        for name, contents in members.items():
            file.writestr(name, contents)
    return LocalPlace(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_as_they_were_saved(save, tmp_path):
    save(tmp_path / "x.npz", **ARRAYS)
    found = read_npz(LocalPlace(tmp_path), "x.npz")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert torch.equal(
            found[name], torch.from_numpy(np.ascontiguousarray(array)).view(array.shape)
        )
        assert found[name].numpy().dtype == array.dtype
    peeked = peek_npz(LocalPlace(tmp_path), "x.npz")
    assert all(tensor.is_meta for tensor in peeked.values())
    assert header_of(peeked) == header_of(found)
    assert header_of(peeked)["columns"] == ("F32", (3, 4))


def test_objects_are_never_unpickled(tmp_path):
    marker = tmp_path / "marker"

    class Command:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    np.savez(tmp_path / "x.npz", x=np.array([Command()], dtype=object))
    refused(LocalPlace(tmp_path), r"'x' is an array of type '\|O'; only arrays of plain numbers")
    assert not marker.exists()


@pytest.mark.parametrize("dtype", [">f4", "S3", "M8[s]", "c8", [("a", "f4")]])
def test_types_without_a_tensor_are_refused(dtype, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros(2, dtype=dtype))
    refused(LocalPlace(tmp_path), "'x' is an array of type")


@pytest.mark.parametrize("shape", ["(1099511627776,)", "(4,)", "(2,)", "(-3,)", f"(0, {1 << 63})"])
def test_sizes_that_do_not_fit_are_refused(shape, tmp_path):
    contents = raw(np.zeros(3, dtype=np.float32))
    padded = contents.replace(b"(3,), }", f"{shape}, }}".encode())
    n_header = 10 + int.from_bytes(padded[8:10], "little")
    grown = len(padded) - len(contents)
    fitted = padded[:10] + (n_header - 10 + grown).to_bytes(2, "little") + padded[12 - 2 :]
    refused(archive(tmp_path, {"x.npy": fitted}), "damaged")


@pytest.mark.parametrize("contents", [b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00", b"no array at all"])
def test_members_that_are_no_arrays_are_refused(contents, tmp_path):
    refused(archive(tmp_path, {"x.npy": contents}), "is damaged")


def test_headers_are_bounded(tmp_path):
    header = b"(" * 60_000
    contents = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    refused(archive(tmp_path, {"x.npy": contents}), "is damaged")


def test_other_members_are_refused(tmp_path):
    refused(
        archive(tmp_path, {"x.npy": raw(np.ones(2)), "run.py": ""}), r"a member 'run\.py', no arr"
    )


def test_archives_that_unpack_to_too_much_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(1 << 20))
    refused(LocalPlace(tmp_path), "has .* bytes, and members of 8,388,")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files_are_named(share, tmp_path):
    np.savez(tmp_path / "x.npz", **ARRAYS)
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[: int(share * len(whole))])
    refused(LocalPlace(tmp_path), "is (damaged|no zip)")


def test_flipped_bytes_of_an_array_are_noticed(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.full(64, 1.5))
    whole, data = (tmp_path / "x.npz").read_bytes(), np.full(64, 1.5).tobytes()
    (tmp_path / "x.npz").write_bytes(whole.replace(data, data[:-1] + b"\x00"))
    with pytest.raises(ValueError, match=r"x\.npz: is damaged .*Bad CRC"):
        read_npz(LocalPlace(tmp_path), "x.npz")
