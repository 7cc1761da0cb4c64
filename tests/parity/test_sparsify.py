"""SAEs that sparsify saves open here and give the same codes and reconstructions, and back.

sparsify runs in an environment of its own (requirements-sparsify.txt); the two meet in files.
"""

import itertools
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sae_kit.formats import load_sae, save_sae
from sae_kit.sae.groupmax import GroupMaxConfig
from sae_kit.sae.topk import TopKConfig

PYTHON = os.environ.get("SAE_KIT_SPARSIFY_PYTHON")
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="SAE_KIT_SPARSIFY_PYTHON is unset; see requirements-sparsify.txt"
)

# Under argv[1]: opens every ours/, and draws an SAE for every cfg.json that stands beside inputs
# without ours/; runs each on the inputs, and saves it as theirs/.
PEER = """
import json
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

def drawn(folder):
    given = json.loads((folder / "cfg.json").read_text())
    dtype = getattr(torch, given.pop("dtype"))
    sae = SparseCoder(given.pop("d_in"), SparseCoderConfig(**given), dtype=dtype)
    torch.manual_seed(0)
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return sae

for folder in sorted(Path(sys.argv[1]).iterdir()):
    ours = folder / "ours"
    sae = SparseCoder.load_from_disk(ours) if ours.exists() else drawn(folder)
    sae.save_to_disk(folder / "theirs")
    sae = SparseCoder.load_from_disk(folder / "theirs").float()
    x = load_file(folder / "inputs.safetensors")["x"]
    with torch.no_grad():
        acts, indices, _ = sae.encode(x)
        code = torch.zeros(len(x), sae.num_latents).scatter(1, indices, acts)
        outputs = {"code": code, "recon": sae(x).sae_out.contiguous()}
    save_file(outputs, folder / "outputs.safetensors")
"""

D, F, K = 24, 96, 6
CLOSE = {"atol": 1e-5, "rtol": 1e-5}

PRE_BIAS = {
    word: kind(d_sae=F, k=K) for word, kind in (("topk", TopKConfig), ("groupmax", GroupMaxConfig))
}
PLAIN = {word: replace(config, apply_b_dec_to_input=False) for word, config in PRE_BIAS.items()}
OURS = {
    **{f"ours-{word}-with-pre-bias": (config, None) for word, config in PRE_BIAS.items()},
    **{f"ours-{word}-without-pre-bias": (config, None) for word, config in PLAIN.items()},
    **{f"ours-{word}-transcoder": (config, D) for word, config in PLAIN.items()},
    **{
        f"ours-{word}-skip-transcoder": (replace(config, skip=True), D)
        for word, config in PLAIN.items()
    },
}
THEIRS = {
    f"theirs-{activation}-transcode-{transcode}-skip-{skip}-{dtype}": {
        "activation": activation,
        "transcode": transcode,
        "skip_connection": skip,
        "dtype": dtype,
        "k": K,
        "d_in": D,
        **size,
    }
    for activation, transcode, skip, (dtype, size) in itertools.product(
        ("topk", "groupmax"),
        (False, True),
        (False, True),
        (("float32", {"num_latents": F}), ("bfloat16", {"expansion_factor": F // D})),
    )
}


def build(name):
    """An SAE with no special weights: random biases, a folded input scale."""
    config, d_out = OURS[name]
    sae = config.build(D, d_out, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in sae.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=noise), alpha=0.2)
    sae.fold_scales(0.3, 0.3 if d_out is None else 0.7)
    return sae


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Path:
    """The folder in which sparsify has opened or made, run and saved every SAE."""
    root = tmp_path_factory.mktemp("sparsify")
    x = 3 * torch.randn(64, D, generator=torch.Generator().manual_seed(2))
    for name in (*OURS, *THEIRS):
        (root / name).mkdir()
        save_file({"x": x}, root / name / "inputs.safetensors")
    for name in OURS:
        metadata = {"hook_name": "blocks.2.hook_resid_post", "nested": {"l0": [1.5]}}
        save_sae(build(name), root / name / "ours", metadata=metadata, format="sparsify")
    for name, settings in THEIRS.items():
        (root / name / "cfg.json").write_text(json.dumps(settings))
    assert PYTHON is not None
    done = subprocess.run(
        [PYTHON, "-c", PEER, str(root)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return root


def compare(sae, folder):
    outputs = load_file(folder / "outputs.safetensors")
    x = load_file(folder / "inputs.safetensors")["x"]
    with torch.no_grad():
        assert_close(sae.encode(x), outputs["code"], **CLOSE)
        assert_close(sae(x), outputs["recon"], **CLOSE)
    assert outputs["code"].any(), "an SAE that never fires passes everything above"


@pytest.mark.parametrize("name", THEIRS)
def test_what_sparsify_saves_computes_the_same_here(opened, name):
    sae = load_sae(opened / name / "theirs")
    compare(sae, opened / name)
    assert sae.config.word == THEIRS[name]["activation"]
    assert sae.is_transcoder is (THEIRS[name]["transcode"] or THEIRS[name]["skip_connection"])


@pytest.mark.parametrize("name", OURS)
def test_what_we_save_computes_the_same_in_sparsify(opened, name):
    compare(build(name), opened / name)


@pytest.mark.parametrize("name", OURS)
def test_weights_are_bit_equal_on_the_way_there_and_back(opened, name):
    """sparsify keeps no record of ours: what comes back is the plain architecture."""
    sae, ours = load_sae(opened / name / "theirs"), build(name)
    assert sae.config == ours.config
    for key, tensor in ours.weights().items():
        assert torch.equal(sae.weights()[key], tensor), key
