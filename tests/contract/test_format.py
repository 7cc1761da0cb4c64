"""What every format must do, on samples of every layout. A new one needs only its samples."""

import json
import re
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from format_samples import SAMPLES
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sae_kit.config import from_node
from sae_kit.formats import base, inspect_sae, load_sae, load_saes, save_sae
from sae_kit.formats.openai import STATISTICS
from sae_kit.formats.places import LocalPlace
from sae_kit.formats.tensors import FLOATS
from sae_kit.sae import SAEConfig
from sae_kit.sae.normalization import NORMALIZATIONS

CLOSE = {"atol": 1e-6, "rtol": 1e-6}
FORMATS = base.formats()
WRITABLE = sorted(name for name, one in FORMATS.items() if isinstance(one, base.WritableFormat))

# Formats without a config, or with one that names no widths; and samples of theirs that do.
WITHOUT_WIDTHS = {"openai", "gemma_scope", "e2e_sae"}
WITH_WIDTHS = {"e2e_sae-published", "e2e_sae-pair", "e2e_sae-run"}

# Without these, some SAEs open all the same, or are inspected.
OPTIONAL = {
    "sparsity.safetensors",
    "activation_scaler.json",
    "config.json",
    "final_config.yaml",
    "e2e_layer_6.yaml",
}

TENSORS = {".safetensors", ".pt", ".npz"}


@pytest.fixture(params=SAMPLES, ids=str)
def sample(request):
    return request.param


@pytest.fixture
def place(sample, tmp_path):
    return sample.write(tmp_path)


def rows(d_in, *shape, dtype=torch.float32):
    draw = torch.Generator().manual_seed(7)
    return torch.randn(*shape, d_in, generator=draw, dtype=dtype) * 2 + 0.3


def files_of(place):
    """The files of the SAE at a place, those beside a single file included."""
    folder = place if place.is_dir() else place.parent
    return sorted(path for path in folder.rglob("*") if path.is_file())


def weights_of(place):
    (path,) = (
        path
        for path in files_of(place)
        if path.suffix in TENSORS and path.name != "sparsity.safetensors"
    )
    return path


def edit_tensors(path, change):
    """Replace each tensor of a file, of whatever kind it is, by change(name, tensor)."""

    def changed(value, name=""):
        if isinstance(value, dict):
            return {key: changed(item, key) for key, item in value.items()}
        return change(name, value).clone() if isinstance(value, torch.Tensor) else value

    if path.suffix == ".safetensors":
        save_file(changed(load_file(path)), path)
    elif path.suffix == ".pt":
        torch.save(changed(torch.load(path, weights_only=True)), path)
    else:
        arrays = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
        np.savez(path, **{name: tensor.numpy() for name, tensor in changed(arrays).items()})


def spoil(path):
    """Change the values of every tensor, and nothing that is said of them."""
    raw = bytearray(path.read_bytes())
    if path.suffix == ".safetensors":
        first = int.from_bytes(raw[:8], "little") + 8
        raw[first:] = b"\xff" * (len(raw) - first)  # NaN in every type
    else:
        with zipfile.ZipFile(path) as file:
            storages = [one for one in file.infolist() if "/data/" in one.filename]
        for one in storages:  # behind a header of 30 bytes, a name and padding
            lengths = struct.unpack_from("<HH", raw, one.header_offset + 26)
            raw[one.header_offset + 30 + sum(lengths)] ^= 0xFF
    path.write_bytes(raw)


def refused(place, *names):
    """Both ways of opening refuse, and name one of these."""
    for open_ in (load_sae, inspect_sae):
        with pytest.raises(ValueError, match=":") as caught:
            open_(place)
        assert any(str(name) in str(caught.value) for name in names), str(caught.value)


# --- opening --------------------------------------------------------------------------------------


def test_every_format_has_samples():
    assert {sample.format for sample in SAMPLES} == FORMATS.keys()


def test_exactly_one_format_recognises_it(sample, place):
    assert inspect_sae(place).format == sample.format
    local = LocalPlace(place)
    names = local.names()
    claims = [
        name
        for name, one in FORMATS.items()
        if any(entry == "" or names == (entry,) for entry in one.find(names))
        and one.recognises(local)
    ]
    assert claims == [sample.format]


def test_its_name_may_be_given(sample, place):
    assert inspect_sae(place, format=sample.format) == inspect_sae(place)
    named, found = load_sae(place, format=sample.format), load_sae(place)
    x = rows(found.d_in, 5)
    assert torch.equal(named(x), found(x))
    assert named.metadata == found.metadata


def test_another_name_is_refused(sample, place):
    for other in FORMATS.keys() - {sample.format}:
        with pytest.raises(ValueError, match=re.escape(place.name)):
            load_sae(place, format=other)


def test_it_is_found_from_above(sample, place, tmp_path):
    (found,) = load_saes(tmp_path).items()
    sae = load_sae(place)
    assert found[0] == sae.metadata.get("hook_name", found[0])
    assert torch.equal(found[1](rows(sae.d_in, 5)), sae(rows(sae.d_in, 5)))


def test_inspecting_says_what_loading_builds(place):
    info, sae = inspect_sae(place), load_sae(place)
    assert info.source == place.as_posix()
    assert info.config == sae.config
    assert (info.d_in, info.d_out) == (sae.d_in, sae.d_out if sae.is_transcoder else None)
    assert info.normalization == sae.normalization
    assert info.site == sae.metadata.get("hook_name")
    said = dict(sae.metadata)
    assert said.pop("conversions", []) == list(info.conversions)
    assert {"hook_name": info.site, **said} == {"hook_name": info.site, **info.metadata}
    assert json.loads(json.dumps(sae.metadata)) == sae.metadata


def test_inspecting_reads_no_weights(place):
    """Spoiled where the values are: a header, or a pickle stream, has all that it needs."""
    path, before = weights_of(place), inspect_sae(place)
    if path.suffix == ".npz":
        pytest.skip("the values begin in the block that has the header")
    spoil(path)
    assert inspect_sae(place) == before
    with pytest.raises(ValueError, match=r"NaN or infinity|is nan|Bad CRC"):
        load_sae(place)


# --- computing ------------------------------------------------------------------------------------


def test_codes_are_finite_and_decoding_them_is_the_output(place):
    sae = load_sae(place)
    x = rows(sae.d_in, 20)
    code = sae.encode(x)
    assert code.isfinite().all()
    assert (code > 0).any(), "an SAE that never fires passes everything"
    assert_close(sae.reconstruct(x, code), sae(x), atol=1e-5, rtol=1e-5)
    if sae.normalization == "none" and not sae.config.skip:
        assert_close(sae.decode(code), sae(x), atol=1e-5, rtol=1e-5)


def test_shapes_of_batches_do_not_matter(place):
    sae = load_sae(place)
    x = rows(sae.d_in, 2, 3)
    assert_close(sae(x).flatten(0, 1), sae(x.flatten(0, 1)), **CLOSE)
    assert_close(sae(x[0, 0]), sae(x)[0, 0], atol=1e-5, rtol=1e-5)
    assert_close(sae.encode(x[1, 2]), sae.encode(x)[1, 2], atol=1e-5, rtol=1e-5)


# --- files that are not whole ---------------------------------------------------------------------


def test_missing_files_are_named(place):
    for path in files_of(place):
        raw = path.read_bytes()
        path.unlink()
        if path.name not in OPTIONAL:
            refused(place, path.name, place)
        path.write_bytes(raw)


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_empty_and_truncated_files_are_named(share, place):
    for path in files_of(place):
        if path.name == "sparsity.safetensors":  # nobody reads it
            continue
        raw = path.read_bytes()
        path.write_bytes(raw[: int(share * len(raw))])
        if path.suffix in TENSORS or path.suffix == ".json":  # half of a YAML file is one
            refused(place, path.name, place)
        path.write_bytes(raw)


def test_a_tensor_of_another_width_is_refused(place):
    path, info = weights_of(place), inspect_sae(place)
    raw = path.read_bytes()
    for name, (dtype, shape) in info.tensors.items():
        if not shape or dtype not in FLOATS or name in STATISTICS:
            continue
        edit_tensors(path, lambda key, tensor, name=name: tensor[:-1] if key == name else tensor)
        refused(place, path.name, place)
        path.write_bytes(raw)


def test_weights_of_another_sae_are_refused(sample, place):
    """All of them of another dictionary; without a config, that is just another SAE."""
    d_sae = inspect_sae(place).config.d_sae

    def narrower(name, tensor):
        for axis, size in enumerate(tensor.shape):
            tensor = tensor.narrow(axis, 0, d_sae // 2) if size == d_sae else tensor
        return tensor

    edit_tensors(weights_of(place), narrower)
    if sample.format in WITHOUT_WIDTHS and str(sample) not in WITH_WIDTHS:
        assert load_sae(place).d_sae == d_sae // 2
    else:
        refused(place, *(path.name for path in files_of(place)))


# --- saving what was opened -----------------------------------------------------------------------


def test_saved_natively_it_stays_what_it_is(place, tmp_path):
    sae = load_sae(place)
    save_sae(sae, tmp_path / "again")
    again = load_sae(tmp_path / "again")
    x = rows(sae.d_in, 20)
    assert_close(again.encode(x), sae.encode(x), **CLOSE)
    assert_close(again(x), sae(x), **CLOSE)
    assert again.metadata == sae.metadata
    assert again.config == sae.config


# --- any SAE through any format that can hold it --------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-9, 9) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = st.sampled_from(["hook_name", "model_name", "sae_lens_version", "dataset", "k", "ünï ço"])
METADATA = st.dictionaries(KEYS, VALUES, max_size=3)

# What each writable format can hold.
HOLDS = {
    "saelens": lambda sae: not (sae.is_transcoder and sae.normalization != "none"),
    "sparsify": lambda sae: (
        sae.config.word in ("topk", "groupmax")
        and sae.normalization == "none"
        and sae.d_in == sae.d_out
    ),
    "dictionary_learning": lambda sae: (
        sae.config.word != "groupmax" and sae.normalization == "none" and not sae.is_transcoder
    ),
}


@st.composite
def options(draw):
    """Widths, type and options of an SAE. Strategies build none: type checks draw at random too."""
    n_groups, size = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    d_in, d_out = draw(st.integers(1, 5)), draw(st.none() | st.integers(1, 5))
    return {
        "d_in": d_in,
        "d_out": draw(st.sampled_from([d_out, d_out and d_in])),
        "d_sae": n_groups * size,
        "k": n_groups,
        "apply_b_dec_to_input": d_out is None and draw(st.booleans()),
        "skip": d_out is not None and draw(st.booleans()),
        "aux_coefficient": draw(st.floats(0, 9)),
        "l1_coefficient": draw(st.floats(0, 9)),
        "bandwidth": draw(st.floats(0.1, 9)),
        "group_fractions": draw(st.sampled_from([(1.0,), (0.25, 0.75), (0.1, 0.2, 0.7)])),
        "own_thresholds": draw(st.booleans()),
        "normalization": draw(st.sampled_from(["none", *NORMALIZATIONS])),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])),
        "seed": draw(st.integers(0, 9)),
    }


def build(arch, given):
    """An SAE with these options, as far as the architecture has them; every tensor matters."""
    known = {"arch", *SAEConfig.variants()[arch].__dataclass_fields__}
    config = from_node(SAEConfig, {k: v for k, v in (given | {"arch": arch}).items() if k in known})
    sae = config.build(given["d_in"], given["d_out"], generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(given["seed"])
    with torch.no_grad():
        for tensor in sae.state_dict().values():
            tensor.add_(torch.randn(tensor.shape, generator=noise), alpha=0.3)
        if "threshold" in sae.state_dict() and not given["own_thresholds"]:
            sae.threshold.fill_(0.2)
    sae.normalization = given["normalization"]
    return sae.to(given["dtype"])


@pytest.mark.parametrize("arch", SAEConfig.variants())
@pytest.mark.parametrize("format", WRITABLE)
@settings(max_examples=5, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(given=options(), metadata=METADATA)
def test_every_sae_comes_back_or_is_refused(format, arch, given, metadata):
    sae = build(arch, given)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sae"
        if not HOLDS[format](sae):
            with pytest.raises(ValueError, match=r"cannot express|has no class") as caught:
                save_sae(sae, path, metadata=metadata, format=format)
            assert repr(arch) in str(caught.value)
            assert format in str(caught.value).lower()
            assert not path.exists()
            return
        save_sae(sae, path, metadata=metadata, format=format)
        again = load_sae(path)
        assert inspect_sae(path).format == format
    assert again.metadata == metadata
    assert (again.config, again.is_transcoder) == (sae.config, sae.is_transcoder)
    assert again.normalization == sae.normalization
    dtype = torch.promote_types(sae.W_dec.dtype, torch.float32)
    assert again.W_dec.dtype == dtype
    x = rows(sae.d_in, 9, dtype=dtype)
    sae = sae.to(dtype)
    assert_close(again.encode(x), sae.encode(x), **CLOSE)
    assert_close(again(x), sae(x), **CLOSE)
