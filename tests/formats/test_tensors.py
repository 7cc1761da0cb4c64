import pytest
import torch
from safetensors.torch import save_file

from sae_kit.formats.places import LocalPlace
from sae_kit.formats.tensors import check_header, read_safetensors

EXPECTED = {"w": (2, 3), "b": (2,)}


def check(header):
    check_header(header, EXPECTED, "f", optional={"s": ()}, because="d_in=3 and d_sae=2")


def test_what_is_expected_may_have_any_float_type():
    check({"w": ("F32", (2, 3)), "b": ("BF16", (2,))})
    check({"w": ("F16", (2, 3)), "b": ("F64", (2,)), "s": ("F32", ())})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": None}, r"missing tensors \['w'\], unknown tensors \[\]"),
        ({"c": ("F32", (2,))}, r"missing tensors \[\], unknown tensors \['c'\]"),
        ({"w": ("F32", (3, 2))}, r"w has shape \(3, 2\), but d_in=3 and d_sae=2 make it \(2, 3\)"),
        ({"s": ("F32", (1,))}, r"s has shape \(1,\)"),
        ({"b": ("I64", (2,))}, "b has type I64; it must be one of F64"),
    ],
)
def test_what_is_not_expected_is_named(changes, message):
    header = {"w": ("F32", (2, 3)), "b": ("F32", (2,))} | changes
    with pytest.raises(ValueError, match=f"f: {message}"):
        check({name: entry for name, entry in header.items() if entry})


def test_tensors_come_by_our_names(tmp_path):
    file = tmp_path / "w.safetensors"
    save_file({"encoder.weight": torch.arange(6.0).view(2, 3), "other": torch.ones(1)}, file)
    read = read_safetensors(LocalPlace(tmp_path), "w.safetensors", {"encoder.weight": "w"})
    assert read.keys() == {"w"}
    assert torch.equal(read["w"], torch.arange(6.0).view(2, 3))


def test_a_file_cut_short_is_named(tmp_path):
    file = tmp_path / "w.safetensors"
    save_file({"w": torch.zeros(100)}, file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"w\.safetensors: is damaged or cut short"):
        read_safetensors(LocalPlace(tmp_path), "w.safetensors", {"w": "w"})
