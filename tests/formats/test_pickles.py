import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from sae_kit.formats import pickles
from sae_kit.formats.pickles import peek_pt, read_pt
from sae_kit.formats.places import LocalPlace
from sae_kit.formats.tensors import header_of

CONTENTS = {
    "w": torch.arange(12.0).view(3, 4),
    "t": torch.arange(12.0).view(3, 4).T,
    "part": torch.arange(12.0)[5:9],
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "parameter": nn.Parameter(torch.ones(2)),
    "state": nn.Linear(2, 3).state_dict(),
    "config": {"k": 32, "big": 1 << 40, "lr": 1e-3, "on": True, "off": False, "none": None},
    "lists": [1, [2, "three"], (), (4,), (5, 6, 7, 8)],
    "size": torch.Size([2, 3]),
    **{str(dtype): torch.ones(3).to(dtype) for dtype in pickles._STORAGES.values()},
}


def equal(ours, theirs):
    """Equal in structure, values, and types of tensors."""
    if isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs and type(ours) is type(theirs)


def save(tmp_path, contents):
    torch.save(contents, tmp_path / "x.pt")
    return LocalPlace(tmp_path)


def refused(place, message):
    for open_ in (peek_pt, read_pt):
        with pytest.raises(ValueError, match=rf"x\.pt: .*{message}"):
            open_(place, "x.pt")


# --- files as torch writes them -------------------------------------------------------------------


def test_contents_are_those_that_torch_loads(tmp_path):
    place = save(tmp_path, CONTENTS)
    assert equal(read_pt(place, "x.pt"), torch.load(tmp_path / "x.pt", weights_only=True))


def test_values_of_configs_become_texts(tmp_path):
    values = {"device": torch.device("cpu"), "gpu": torch.device("cuda:1"), "dtype": torch.float32}
    place = save(tmp_path, values)
    assert read_pt(place, "x.pt") == {"device": "cpu", "gpu": "cuda:1", "dtype": "torch.float32"}


def test_peeking_reads_no_tensor(tmp_path, monkeypatch):
    place = save(tmp_path, CONTENTS)
    monkeypatch.setattr(pickles, "fill", None)
    peeked = peek_pt(place, "x.pt")
    assert all(value.is_meta for value in peeked.values() if isinstance(value, torch.Tensor))
    assert header_of(peeked) == header_of({k: v for k, v in CONTENTS.items() if k != "size"})
    assert header_of(peeked)["t"] == ("F32", (4, 3))
    assert peeked["config"] == CONTENTS["config"]
    assert peeked["state"]["weight"].shape == (3, 2)
    with pytest.raises(ValueError, match="'NoneType' object is not callable"):
        read_pt(place, "x.pt")


def test_tensors_outlive_their_file(tmp_path):
    place = save(tmp_path, CONTENTS)
    found = read_pt(place, "x.pt")
    (tmp_path / "x.pt").unlink()
    assert torch.equal(found["w"], CONTENTS["w"])


def test_tensors_that_were_on_a_gpu_come_to_the_cpu(tmp_path):
    save(tmp_path, {"w": torch.ones(2)})
    rewrite(tmp_path, lambda stream: stream.replace(b"cpu", b"foo"))
    assert torch.equal(read_pt(LocalPlace(tmp_path), "x.pt")["w"], torch.ones(2))


# --- files that would do harm, or cannot be what they say -----------------------------------------


def rewrite(tmp_path, change, members=None):
    """The file again with another pickle stream, or with other members of these names."""
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path) as file:
        held = {info.filename: file.read(info) for info in file.infolist()}
    held = {name: change(raw) if name.endswith("data.pkl") else raw for name, raw in held.items()}
    with zipfile.ZipFile(path, "w") as file:
        for name, raw in (held | (members or {})).items():
            file.writestr(name, raw)


class Command:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("nested", [False, True])
def test_no_code_is_run(nested, tmp_path):
    marker = tmp_path / "marker"
    harm = Command(f"touch {marker}")
    place = save(tmp_path, {"w": torch.ones(2), "x": [harm]} if nested else harm)
    refused(place, r"asks for 'posix\.system'; only dicts of tensors")
    assert not marker.exists()
    torch.load(tmp_path / "x.pt", weights_only=False)  # the file is as dangerous as it looks
    assert marker.exists()


class Call:
    """Pickles as a call of a function that torch's own safe loader allows."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [Call(bytearray, 1 << 40), Call(torch.Tensor, 1 << 20, 1 << 20), Call(torch.UntypedStorage, 9)],
)
def test_nothing_is_allocated_by_name(call, tmp_path):
    refused(save(tmp_path, {"x": call}), r"asks for '(builtins|__builtin__|torch)\.")


def test_models_pickled_whole_are_refused(tmp_path):
    refused(
        save(tmp_path, nn.Linear(2, 2)), r"asks for 'torch\.nn\.modules\.linear\.Linear'.*state_di"
    )


@pytest.mark.parametrize("contents", [torch.ones(2), [1, 2], {1: torch.ones(2)}])
def test_contents_are_a_dict_by_name(contents, tmp_path):
    refused(save(tmp_path, contents), r"holds a \w+, and no dict of names")


def test_views_that_repeat_elements_are_refused(tmp_path):
    refused(
        save(tmp_path, {"x": torch.ones(1).expand(1 << 40)}),
        "1,099,511,627,776 elements in 1$|in 1\\)",
    )


def test_views_beyond_their_storage_are_refused(tmp_path):
    save(tmp_path, {"x": torch.ones(9, 7)})
    # Strides (7, 1): K is the opcode before a small number, \x86 makes a pair.
    rewrite(tmp_path, lambda stream: stream.replace(b"K\x07K\x01\x86", b"K\x08K\x01\x86"))
    refused(LocalPlace(tmp_path), "ValueError: a tensor of 63 elements in 63")


def test_tensors_have_no_more_bytes_than_the_file(tmp_path):
    x = torch.ones(1 << 16)
    assert len(read_pt(save(tmp_path, {"x": x}), "x.pt")["x"]) == 1 << 16
    refused(save(tmp_path, {"x": x, "y": x[1:], "z": x[2:]}), "tensors of more bytes than the file")


def test_storages_are_as_long_as_their_members(tmp_path):
    save(tmp_path, {"w": torch.ones(2)})
    rewrite(tmp_path, lambda stream: stream, {"x/data/0": bytes(12)})
    refused(LocalPlace(tmp_path), "x/data/0 has 12 bytes, not 8")


def test_storages_have_one_type(tmp_path):
    """Else each type would be read into memory of its own."""
    save(tmp_path, {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.int32)})
    rewrite(tmp_path, lambda stream: stream.replace(b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x000"))
    refused(LocalPlace(tmp_path), "x/data/0 has two types")


def test_storages_that_are_not_there(tmp_path):
    save(tmp_path, {"w": torch.ones(2)})
    rewrite(tmp_path, lambda stream: stream.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x007"))
    refused(LocalPlace(tmp_path), "KeyError: 'x/data/7'")


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "damaged"),
        (b"\x80\x02}", "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02e.", "damaged"),
        (b"\x80\x02}}.", "damaged"),
        (b"\x80\x02h\x07.", "KeyError"),
        (b"\x80\x02}(X\x01\x00\x00\x00au.", "damaged"),
        (b"\x80\x02}K\x01)R.", "a int where the stream needs"),
        (b"\x80\x02}ctorch\nSize\n)RK\x01s.", "damaged"),
        (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}.", "uses FRAME"),
        (pickle.dumps({"a": {1, 2}}, protocol=2), r"asks for '(__builtin__|builtins)\.set'"),
        (pickle.dumps({"a": b"1"}, protocol=2), r"asks for '_codecs\.encode'"),
        (pickle.dumps({(1, 2): 1}, protocol=2), "a tuple where the stream needs"),
    ],
)
def test_streams_that_make_no_sense_are_named(stream, message, tmp_path):
    save(tmp_path, {})
    rewrite(tmp_path, lambda _: stream)
    refused(LocalPlace(tmp_path), message)


def endless():
    loop = []
    loop.append(loop)
    return loop


def doubled():
    x = (1,)
    for _ in range(60):
        x = (x, x)
    return x


def deep():
    x = []
    for _ in range(200):
        x = [x]
    return x


@pytest.mark.parametrize(
    "value", [endless(), doubled(), deep()], ids=["endless", "doubled", "deep"]
)
def test_values_without_end_are_refused(value, tmp_path):
    refused(save(tmp_path, {"x": value}), "holds over 262,144 values, or 32 deep")


def test_a_storage_named_by_a_value_without_end(tmp_path):
    """Printing or hashing such a value would not come back."""
    save(tmp_path, {})
    key = pickle.dumps(doubled(), protocol=2)[2:-1]
    pid = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + key + b"X\x03\x00\x00\x00cpuK\x01tQ"
    rewrite(tmp_path, lambda _: b"\x80\x02" + pid + b".")
    refused(LocalPlace(tmp_path), "a tuple where the stream needs")


def test_streams_are_bounded(tmp_path):
    refused(
        save(tmp_path, {"x": "a" * pickles.MAX_STREAM}), r"has 4,194,\d+ bytes that are not tensors"
    )


def test_lists_of_many_values_are_refused(tmp_path):
    refused(save(tmp_path, {"x": [1] * pickles.MAX_VALUES}), "holds over 262,144 values")


# --- other files ----------------------------------------------------------------------------------


def test_older_files_are_refused_with_a_remedy(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    refused(LocalPlace(tmp_path), r"is no zip file; if torch before 1\.6 wrote it")


def test_plain_pickles_are_refused_and_not_run(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Command(f"touch {marker}")))
    refused(LocalPlace(tmp_path), "is no zip file")
    assert not marker.exists()


def test_zip_files_of_other_things_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("notes.txt", "")
    refused(LocalPlace(tmp_path), r"without a data\.pkl")


def test_big_endian_files_are_refused(tmp_path):
    save(tmp_path, {"w": torch.ones(2)})
    rewrite(tmp_path, lambda stream: stream, {"x/byteorder": b"big"})
    refused(LocalPlace(tmp_path), "is not little-endian")


def test_compressed_files_are_refused(tmp_path):
    save(tmp_path, {"w": torch.ones(2)})
    with zipfile.ZipFile(tmp_path / "x.pt", "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/more", bytes(99))
    refused(LocalPlace(tmp_path), "'x/more' is compressed")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_named(share, tmp_path):
    place = save(tmp_path, CONTENTS)
    raw = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(raw[: int(share * len(raw))])
    refused(place, "is (damaged|no zip)")


def test_flipped_bytes_of_a_tensor_are_noticed(tmp_path):
    place = save(tmp_path, {"w": torch.full((64,), 1.5)})
    raw = (tmp_path / "x.pt").read_bytes()
    data = torch.full((64,), 1.5).numpy().tobytes()
    (tmp_path / "x.pt").write_bytes(raw.replace(data, data[:-1] + b"\x00"))
    with pytest.raises(ValueError, match=r"x\.pt: is damaged or cut short \(BadZipFile: Bad CRC"):
        read_pt(place, "x.pt")


def test_ordered_dicts_may_have_attributes(tmp_path):
    state = OrderedDict(w=torch.ones(2))
    state._metadata = OrderedDict(version=1)
    assert read_pt(save(tmp_path, state), "x.pt").keys() == {"w"}
