"""SAEs that dictionary_learning saves open here and give the same codes and reconstructions, and
back.

It runs in an environment of its own (requirements-dictionary-learning.txt); the two meet in files.
"""

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
from sae_kit.formats.dictionary_learning_config import CLASSES
from sae_kit.sae.batch_topk import BatchTopKConfig
from sae_kit.sae.gated import GatedConfig
from sae_kit.sae.jumprelu import JumpReLUConfig
from sae_kit.sae.matryoshka import MatryoshkaConfig
from sae_kit.sae.p_anneal import PAnnealConfig
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.relu_weighted import WeightedReLUConfig
from sae_kit.sae.topk import TopKConfig

PYTHON = os.environ.get("SAE_KIT_DICTIONARY_LEARNING_PYTHON")
pytestmark = pytest.mark.skipif(
    PYTHON is None,
    reason="SAE_KIT_DICTIONARY_LEARNING_PYTHON is unset; see requirements-dictionary-learning.txt",
)

# Under argv[1]: opens and runs every ours-*/. Writes and runs drawn-<class>/, unset-<class>/
# (without a threshold) and stopped-<class>/ (of a run under way), with random weights; and
# trained-<trainer>/, by its own training loop on inputs of norm 8, normalised.
PEER = """
import json
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from dictionary_learning import dictionary
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import (
    MatryoshkaBatchTopKSAE, MatryoshkaBatchTopKTrainer
)
from dictionary_learning.trainers.p_anneal import PAnnealTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary

D, F, K = 24, 96, 6
root = Path(sys.argv[1])
x = load_file(root / "inputs.safetensors")["x"]
torch.manual_seed(0)

def run(folder, ae):
    with torch.no_grad():
        outputs = {"code": ae.encode(x).contiguous(), "recon": ae(x).contiguous()}
    save_file(outputs, folder / "outputs.safetensors")

def write(folder, ae, trainer, contents=None):
    folder.mkdir()
    torch.save(ae.state_dict() if contents is None else contents, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))

def drawn(name):
    made = {
        "AutoEncoderTopK": lambda: AutoEncoderTopK(D, F, K),
        "BatchTopKSAE": lambda: BatchTopKSAE(D, F, K),
        "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, F, K, [F // 4, F - F // 4]),
    }
    ae = made[name]() if name in made else getattr(dictionary, name)(D, F)
    for parameter in ae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if hasattr(ae, "threshold"):
        ae.threshold.data.fill_(0.4)
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": F}
    return ae, trainer | ({"k": K} if name in made else {})

for folder in sorted(root.glob("ours-*")):
    run(folder, load_dictionary(str(folder), "cpu")[0])

for name in json.loads((root / "classes.json").read_text()):
    ae, trainer = drawn(name)
    write(root / f"drawn-{name}", ae, trainer)
    run(root / f"drawn-{name}", load_dictionary(str(root / f"drawn-{name}"), "cpu")[0])
    if "k" in trainer:
        ae.threshold.fill_(-1)
        write(root / f"unset-{name}", ae, trainer)
        run(root / f"unset-{name}", load_dictionary(str(root / f"unset-{name}"), "cpu")[0])
    if hasattr(ae, "scale_biases"):
        ae, trainer = drawn(name)
        optimizer = torch.optim.Adam(ae.parameters())
        ae(x).sum().backward()
        optimizer.step()
        state = {key: tensor.clone() for key, tensor in ae.state_dict().items()}
        contents = {"step": 1, "ae": state, "optimizer": optimizer.state_dict()}
        contents |= {"config": trainer, "norm_factor": 2.5}
        write(root / f"stopped-{name}", ae, trainer, contents)
        ae.scale_biases(2.5)
        if hasattr(ae, "normalize_decoder"):
            ae.normalize_decoder()
        run(root / f"stopped-{name}", ae)

STEPS = 12
common = {"steps": STEPS, "activation_dim": D, "dict_size": F, "layer": 3, "lm_name": "gpt2"}
common |= {"lr": 1e-2, "warmup_steps": 2, "device": "cpu", "seed": 0}
common |= {"submodule_name": "resid_post_layer_3"}
sparse, top = {"sparsity_warmup_steps": 2}, {"k": K, "threshold_start_step": 2}
annealed = {"anneal_start": 4, "sparsity_function": "Lp^p", "p_end": 0.2}
trainers = [
    {"trainer": StandardTrainer, **common, **sparse},
    {"trainer": StandardTrainerAprilUpdate, **common, **sparse},
    {"trainer": GatedSAETrainer, **common, **sparse},
    {"trainer": JumpReluTrainer, **common, **sparse},
    {"trainer": PAnnealTrainer, **common, **sparse, **annealed},
    {"trainer": TopKTrainer, **common, **top},
    {"trainer": BatchTopKTrainer, **common, **top},
    {"trainer": MatryoshkaBatchTopKTrainer, **common, **top, "group_fractions": [0.3, 0.7]},
]
names = [f"trained-{one['trainer'].__name__}" for one in trainers]
batches = [8 * torch.nn.functional.normalize(torch.randn(64, D) + 0.5) for _ in range(200)]
trainSAE(iter(batches), trainers, STEPS, save_dir=str(root / "run"), normalize_activations=True,
         device="cpu")
for i, name in enumerate(names):
    (root / "run" / f"trainer_{i}").rename(root / name)
    run(root / name, load_dictionary(str(root / name), "cpu")[0])
"""

D, F, K = 24, 96, 6
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
ARCHITECTURES = (
    ReLUConfig(d_sae=F),
    WeightedReLUConfig(d_sae=F),
    PAnnealConfig(d_sae=F),
    GatedConfig(d_sae=F),
    JumpReLUConfig(d_sae=F),
    TopKConfig(d_sae=F, k=K),
    BatchTopKConfig(d_sae=F, k=K),
    MatryoshkaConfig(d_sae=F, k=K),
)
OURS = {
    f"ours-{config.word}-{'with' if config.apply_b_dec_to_input else 'without'}-pre-bias": config
    for each in ARCHITECTURES
    for config in (each, replace(each, apply_b_dec_to_input=False))
} | {"ours-unit-norm": ReLUConfig(d_sae=F)}
TRAINERS = {
    "StandardTrainer": "AutoEncoder",
    "StandardTrainerAprilUpdate": "AutoEncoder",
    "GatedSAETrainer": "GatedAutoEncoder",
    "JumpReluTrainer": "JumpReluAutoEncoder",
    "PAnnealTrainer": "AutoEncoder",
    "TopKTrainer": "AutoEncoderTopK",
    "BatchTopKTrainer": "BatchTopKSAE",
    "MatryoshkaBatchTopKTrainer": "MatryoshkaBatchTopKSAE",
}
THEIRS = {
    **{f"drawn-{name}": name for name in CLASSES},
    **{f"unset-{name}": name for name, known in CLASSES.items() if known.has_k},
    **{f"stopped-{name}": name for name in CLASSES if name != "AutoEncoderNew"},
    **{f"trained-{trainer}": name for trainer, name in TRAINERS.items()},
}


def build(name):
    """An SAE with no special weights: random biases, and a folded input scale."""
    sae = OURS[name].build(D, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in sae.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=noise), alpha=0.2)
        for key, tensor in sae.state_dict().items():
            if key == "threshold":
                tensor.fill_(0.5)
    if name == "ours-unit-norm":
        sae.after_step()
    else:
        sae.fold_scales(0.3, 0.3)
    return sae


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Path:
    """The folder in which dictionary_learning has opened, made and run every SAE."""
    root = tmp_path_factory.mktemp("dictionary_learning")
    x = 3 * torch.randn(64, D, generator=torch.Generator().manual_seed(2))
    save_file({"x": x}, root / "inputs.safetensors")
    (root / "classes.json").write_text(json.dumps(list(CLASSES)))
    for name in OURS:
        metadata = {"hook_name": "blocks.2.hook_resid_post", "model_name": "gpt2"}
        save_sae(build(name), root / name, metadata=metadata, format="dictionary_learning")
    assert PYTHON is not None
    done = subprocess.run(
        [PYTHON, "-c", PEER, str(root)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return root


def compare(sae, root, name):
    outputs = load_file(root / name / "outputs.safetensors")
    x = load_file(root / "inputs.safetensors")["x"]
    with torch.no_grad():
        assert_close(sae.encode(x), outputs["code"], **CLOSE)
        assert_close(sae(x), outputs["recon"], **CLOSE)
    assert outputs["code"].any(), "an SAE that never fires passes everything above"


def test_every_class_is_written_and_read():
    assert set(THEIRS.values()) == set(CLASSES)
    assert {config.word for config in OURS.values()} >= {one.trained_as for one in CLASSES.values()}


@pytest.mark.parametrize("name", THEIRS)
def test_what_dictionary_learning_saves_computes_the_same_here(opened, name):
    sae = load_sae(opened / name)
    compare(sae, opened, name)
    assert sae.config.word == CLASSES[THEIRS[name]].trained_as


@pytest.mark.parametrize("trainer", TRAINERS)
def test_its_trainers_say_where_an_sae_belongs(opened, trainer):
    metadata = load_sae(opened / f"trained-{trainer}").metadata
    assert metadata["hook_name"] == "blocks.3.hook_resid_post"
    assert metadata["model_name"] == "gpt2"
    assert metadata["trainer"]["trainer_class"] == trainer


@pytest.mark.parametrize("name", OURS)
def test_what_we_save_computes_the_same_in_dictionary_learning(opened, name):
    compare(build(name), opened, name)
