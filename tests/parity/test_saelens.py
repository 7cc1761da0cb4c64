"""SAEs that we save open in SAELens and give the same codes and reconstructions, and back.

SAELens runs in an environment of its own (requirements-saelens.txt); the two meet in files.
"""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sae_kit.formats import load_sae, save_sae
from sae_kit.formats.saelens_config import WORDS
from sae_kit.sae import SAEConfig
from sae_kit.sae.batch_topk import BatchTopKConfig
from sae_kit.sae.gated import GatedConfig
from sae_kit.sae.groupmax import GroupMaxConfig
from sae_kit.sae.jumprelu import JumpReLUConfig
from sae_kit.sae.matryoshka import MatryoshkaConfig
from sae_kit.sae.normalization import NORMALIZATIONS
from sae_kit.sae.p_anneal import PAnnealConfig
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.relu_weighted import WeightedReLUConfig
from sae_kit.sae.topk import TopKConfig

PYTHON = os.environ.get("SAE_KIT_SAELENS_PYTHON")
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="SAE_KIT_SAELENS_PYTHON is unset; see requirements-saelens.txt"
)

# Opens every SAE under argv[1], runs it on the inputs beside it, and saves it once more; where it
# cannot open one, it says why. Then it saves and runs a TopK SAE of a kind that we never write.
PEER = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE, TopKSAE, TopKSAEConfig

def run(sae, folder, x):
    with torch.no_grad():
        outputs = {"code": sae.encode(x).contiguous(), "recon": sae(x).contiguous()}
    save_file(outputs, folder / "outputs.safetensors")
    sae.save_model(folder / "theirs")

for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        sae = SAE.load_from_disk(folder / "ours")
    except Exception as error:
        (folder / "refusal.txt").write_text(repr(error))
        continue
    x = load_file(folder / "inputs.safetensors")["x"]
    run(sae, folder, x)
    (folder / "hook_name.txt").write_text(sae.cfg.metadata.hook_name)

torch.manual_seed(0)
sae = TopKSAE(TopKSAEConfig(d_in=24, d_sae=96, k=5, rescale_acts_by_decoder_norm=True))
for parameter in sae.parameters():
    torch.nn.init.normal_(parameter)
x = 5 * torch.randn(64, 24)
rescaled = Path(sys.argv[1]) / "rescaled"
rescaled.mkdir()
run(sae, rescaled, x)
save_file({"x": x}, rescaled / "inputs.safetensors")
"""

SITE = "blocks.2.hook_resid_pre"
D_IN, D_OUT, D_SAE = 24, 20, 96

ARCHITECTURES = (
    ReLUConfig(d_sae=D_SAE),
    WeightedReLUConfig(d_sae=D_SAE),
    PAnnealConfig(d_sae=D_SAE),
    GatedConfig(d_sae=D_SAE),
    JumpReLUConfig(d_sae=D_SAE),
    TopKConfig(d_sae=D_SAE, k=5),
    BatchTopKConfig(d_sae=D_SAE, k=5),
    MatryoshkaConfig(d_sae=D_SAE, k=5),
    GroupMaxConfig(d_sae=D_SAE, k=6),
)
WITHOUT = [replace(config, apply_b_dec_to_input=False) for config in ARCHITECTURES]
AUTOENCODERS = {
    **{f"{config.word}-with-pre-bias": config for config in ARCHITECTURES},
    **{f"{config.word}-without-pre-bias": config for config in WITHOUT},
}
TRANSCODERS = {
    **{f"{config.word}-transcoder": config for config in WITHOUT},
    **{f"{config.word}-skip-transcoder": replace(config, skip=True) for config in WITHOUT},
}
CONFIGS = AUTOENCODERS | TRANSCODERS
NORMALISED = {
    f"{kind}-{name}": (kind, config)
    for kind in NORMALIZATIONS
    if kind != "none"
    for name, config in AUTOENCODERS.items()
    if config.word in ("relu", "topk")
}
REAL = ("L1_x8", "L5_x8")
FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "saelens_v3"
REFUSED = [
    *(name for name, config in TRANSCODERS.items() if config.word in ("topk", "gated")),
    *(name for name, config in CONFIGS.items() if config.word == "groupmax"),
]
OPENED = [name for name in CONFIGS if name not in REFUSED]


def build(name):
    """An SAE with no special weights: random biases, a folded input scale."""
    d_out = D_OUT if name in TRANSCODERS else None
    sae = CONFIGS[name].build(D_IN, d_out, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*sae.parameters(), *sae.buffers()):
            tensor.add_(torch.randn(tensor.shape, generator=noise), alpha=0.2)
        if hasattr(sae, "threshold"):
            sae.threshold.abs_().add_(0.5)
    sae.fold_scales(0.3, 0.3 if d_out is None else 0.7)
    return sae


def build_normalised(name):
    """As `build`, with rows normalised before they are read."""
    kind, config = NORMALISED[name]
    sae = build(next(key for key, value in AUTOENCODERS.items() if value == config))
    sae.normalization = kind
    return sae


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Path:
    """The folder in which SAELens has opened every SAE."""
    root = tmp_path_factory.mktemp("saelens")
    x = 5 * torch.randn(64, D_IN, generator=torch.Generator().manual_seed(2))
    for name in CONFIGS:
        frequency, metadata = torch.full((D_SAE,), 0.25), {"hook_name": SITE}
        save_sae(build(name), root / name / "ours", metadata=metadata, sparsity=frequency)
        save_file({"x": x}, root / name / "inputs.safetensors")
    for name in NORMALISED:
        save_sae(build_normalised(name), root / name / "ours", metadata={"hook_name": SITE})
        save_file({"x": x + 3}, root / name / "inputs.safetensors")
    for name in filter(lambda name: (FIXTURES / name).is_dir(), REAL):
        shutil.copytree(FIXTURES / name, root / name / "ours")
        wide = torch.randn(64, 128, generator=torch.Generator().manual_seed(3))
        save_file({"x": wide}, root / name / "inputs.safetensors")
    assert PYTHON is not None
    done = subprocess.run(
        [PYTHON, "-c", PEER, str(root)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return root


def test_every_architecture_is_compared():
    assert {config.word for config in ARCHITECTURES} == set(SAEConfig.variants())
    written = {WORDS[build(name).inference().arch][0] for name in AUTOENCODERS}
    assert written == {"standard", "gated", "jumprelu", "topk", "groupmax"}


@pytest.mark.parametrize("name", OPENED)
def test_saelens_computes_what_we_compute(opened, name):
    folder = opened / name
    x = load_file(folder / "inputs.safetensors")["x"]
    theirs, sae = load_file(folder / "outputs.safetensors"), build(name)
    with torch.no_grad():
        assert_close(sae.encode(x), theirs["code"], atol=1e-5, rtol=1e-5)
        assert_close(sae(x), theirs["recon"], atol=1e-5, rtol=1e-5)
    assert (theirs["code"] > 0).any()
    assert (folder / "hook_name.txt").read_text() == SITE


@pytest.mark.parametrize("name", NORMALISED)
def test_saelens_normalises_as_we_do(opened, name):
    folder = opened / name
    x = load_file(folder / "inputs.safetensors")["x"]
    theirs, sae = load_file(folder / "outputs.safetensors"), load_sae(folder / "theirs")
    assert sae.normalization == NORMALISED[name][0]
    rounding = 1e-6 * float(theirs["recon"].abs().max())  # single channels may be near 0
    with torch.no_grad():
        for one in (build_normalised(name), sae):
            assert_close(one.encode(x), theirs["code"], atol=1e-5, rtol=1e-5)
            assert_close(one(x), theirs["recon"], atol=rounding, rtol=1e-5)
    assert (theirs["code"] > 0).any()


@pytest.mark.parametrize("name", REAL)
def test_saes_trained_by_others(opened, name):
    """Real SAEs of SAELens 3.4.0, as SAELens opens them today."""
    folder = opened / name
    if not folder.is_dir():
        pytest.skip(f"no fixtures at {FIXTURES}")
    x = load_file(folder / "inputs.safetensors")["x"]
    theirs, sae = load_file(folder / "outputs.safetensors"), load_sae(folder / "ours")
    with torch.no_grad():
        assert_close(sae.encode(x), theirs["code"], atol=1e-5, rtol=1e-5)
        assert_close(sae(x), theirs["recon"], atol=1e-5, rtol=1e-5)
    assert (theirs["code"] > 0).any()


@pytest.mark.parametrize("name", REFUSED)
def test_saelens_refuses_what_it_has_no_word_for(opened, name):
    refusal = (opened / name / "refusal.txt").read_text()
    word = json.loads((opened / name / "ours" / "cfg.json").read_text())["architecture"]
    assert word in refusal


@pytest.mark.parametrize("name", OPENED)
def test_what_saelens_saves_opens_here(opened, name):
    theirs, ours = load_sae(opened / name / "theirs"), build(name)
    assert theirs.config == ours.config
    for key, tensor in ours.weights().items():
        assert torch.equal(theirs.weights()[key], tensor), key


def test_rescaling_by_decoder_norms_is_folded_in(opened):
    folder = opened / "rescaled"
    contents = json.loads((folder / "theirs" / "cfg.json").read_text())
    assert contents["rescale_acts_by_decoder_norm"] is True
    x = load_file(folder / "inputs.safetensors")["x"]
    theirs, sae = load_file(folder / "outputs.safetensors"), load_sae(folder / "theirs")
    with torch.no_grad():
        assert_close(sae.encode(x), theirs["code"], atol=1e-4, rtol=1e-5)
        assert_close(sae(x), theirs["recon"], atol=1e-4, rtol=1e-5)
