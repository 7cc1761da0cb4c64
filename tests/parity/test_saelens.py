"""SAEs that we save open in SAELens and give the same codes and reconstructions, and back.

SAELens runs in an environment of its own (requirements-saelens.txt); the two meet in files.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sae_kit.formats import load_sae, save_sae
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig

PYTHON = os.environ.get("SAE_KIT_SAELENS_PYTHON")
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="SAE_KIT_SAELENS_PYTHON is unset; see requirements-saelens.txt"
)

# Opens every SAE under argv[1], encodes and decodes the inputs beside it, and saves it once more.
PEER = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE

for folder in sorted(Path(sys.argv[1]).iterdir()):
    sae = SAE.load_from_disk(folder / "ours")
    with torch.no_grad():
        code = sae.encode(load_file(folder / "inputs.safetensors")["x"])
        outputs = {"code": code.contiguous(), "recon": sae.decode(code).contiguous()}
    save_file(outputs, folder / "outputs.safetensors")
    sae.save_model(folder / "theirs")
    (folder / "hook_name.txt").write_text(sae.cfg.metadata.hook_name)
"""

SITE = "blocks.2.hook_resid_pre"
CONFIGS = {
    f"{config.word}-{'with' if config.apply_b_dec_to_input else 'without'}-pre-bias": config
    for apply in (True, False)
    for config in (
        ReLUConfig(d_sae=96, apply_b_dec_to_input=apply),
        TopKConfig(d_sae=96, k=5, apply_b_dec_to_input=apply),
    )
}


def build(config):
    """An SAE with no special weights: random biases, a folded input scale."""
    sae = config.build(24, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.2)
    sae.fold_scales(0.3, 0.3)
    return sae


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Path:
    """The folder in which SAELens has opened every SAE."""
    root = tmp_path_factory.mktemp("saelens")
    x = 5 * torch.randn(64, 24, generator=torch.Generator().manual_seed(2))
    for name, config in CONFIGS.items():
        frequency = torch.full((config.d_sae,), 0.25)
        save_sae(
            build(config), root / name / "ours", metadata={"hook_name": SITE}, sparsity=frequency
        )
        save_file({"x": x}, root / name / "inputs.safetensors")
    assert PYTHON is not None
    done = subprocess.run(
        [PYTHON, "-c", PEER, str(root)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("name", CONFIGS)
def test_saelens_computes_what_we_compute(opened, name):
    folder = opened / name
    x = load_file(folder / "inputs.safetensors")["x"]
    theirs, sae = load_file(folder / "outputs.safetensors"), build(CONFIGS[name])
    with torch.no_grad():
        assert_close(sae.encode(x), theirs["code"], atol=1e-5, rtol=1e-5)
        assert_close(sae(x), theirs["recon"], atol=1e-5, rtol=1e-5)
    assert (theirs["code"] > 0).any()
    assert (folder / "hook_name.txt").read_text() == SITE


@pytest.mark.parametrize("name", CONFIGS)
def test_what_saelens_saves_opens_here(opened, name):
    theirs, ours = load_sae(opened / name / "theirs"), build(CONFIGS[name])
    assert theirs.config == ours.config
    for key, tensor in ours.weights().items():
        assert torch.equal(theirs.weights()[key], tensor), key
