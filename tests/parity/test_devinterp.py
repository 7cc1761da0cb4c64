"""The same minima have the same local learning coefficient as devinterp finds.

devinterp runs in an environment of its own (requirements-devinterp.txt); the two meet in files.
It samples language models, and here regressions: what it takes for tokens are numbers of data
points, and what it takes for losses of tokens their squared errors. Every step sees all data, so n
beta means the same to both.

Its estimate is the mean over all steps, those of the burn-in too, so there is none here.
"""

import itertools
import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parameters_to_vector

from sae_kit.evals.loss_landscape.curvature import Network, gauss_newton
from sae_kit.evals.loss_landscape.curvature import spectrum as eigenvalues
from sae_kit.evals.loss_landscape.sgld import Estimate, Sampler, local_learning_coefficient

PYTHON = os.environ.get("SAE_KIT_DEVINTERP_PYTHON")
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="SAE_KIT_DEVINTERP_PYTHON is unset; see requirements-devinterp.txt"
)

# Under argv[1]: folders with problem.json, and weights and data; writes chains.json into each.
PEER = """
import json
import sys
import warnings
from pathlib import Path

import torch
from datasets import Dataset
from devinterp.slt.llc import llc
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import vector_to_parameters

warnings.simplefilter("ignore")
for folder in sorted(Path(sys.argv[1]).iterdir()):
    problem = json.loads((folder / "problem.json").read_text())
    tensors = load_file(folder / "tensors.safetensors")
    x, y = tensors["x"], tensors["y"]
    layers = []
    for d_in, d_out, last in problem["layers"]:
        layers.append(nn.Linear(d_in, d_out, bias=problem["bias"]))
        if not last and problem["tanh"]:
            layers.append(nn.Tanh())
    model = nn.Sequential(*layers)
    vector_to_parameters(tensors["weights"], model.parameters())

    def loss(model, input_ids):
        rows = input_ids[:, 0]
        return (model(x[rows]) - y[rows]).square().sum(1, keepdim=True)

    data = Dataset.from_dict({"input_ids": [[i, i] for i in range(len(x))]}).with_format("torch")
    found = llc(
        model, data, {}, loss_fn=loss, lr=problem["step"], n_beta=problem["n_beta"],
        localization=problem["gamma"], num_chains=problem["n_chains"],
        num_draws=problem["n_draws"], batch_size=len(x), num_init_loss_batches=1, device="cpu",
        output_path=folder / "samples.zarr",
    )
    chains = {"by_chain": found.llc_per_chain.values.tolist(), "initial": float(found.init_loss)}
    (folder / "chains.json").write_text(json.dumps(chains))
"""

N = 200
SAMPLER = Sampler(n_beta=N / math.log(N), gamma=5.0, step=5e-3, n_chains=6, n_draws=700)


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net(*widths: int, tanh: bool, bias: bool, zero: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (d_in, d_out) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(d_in, d_out, bias=bias))
        if tanh and i < len(widths) - 2:
            layers.append(nn.Tanh())
    module = nn.Sequential(*layers).requires_grad_(False)
    for i, p in enumerate(module.parameters()):
        p.copy_(torch.zeros_like(p) if zero else draw(*p.shape, seed=i) / p.shape[-1] ** 0.5)
    return module


PROBLEMS = {
    "linear": net(5, 3, tanh=False, bias=True),
    "tanh": net(3, 8, 2, tanh=True, bias=True),
    "reduced-rank-at-zero": net(4, 3, 4, tanh=False, bias=False, zero=True),
}


def problem(name: str) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """A network that makes its targets itself, so that it is a minimum; inputs of unequal size."""
    module = PROBLEMS[name]
    x = draw(N, module[0].in_features, seed=9)
    if name == "linear":
        x *= torch.tensor([1.0, 1.0, 0.3, 0.1, 0.03])
    return module, x, module(x)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> dict[str, dict]:
    """What devinterp finds of every problem."""
    folder = tmp_path_factory.mktemp("devinterp")
    for name in PROBLEMS:
        module, x, y = problem(name)
        linear = [layer for layer in module if isinstance(layer, nn.Linear)]
        own = folder / name
        own.mkdir()
        settings = {
            "layers": [[p.in_features, p.out_features, p is linear[-1]] for p in linear],
            "tanh": name == "tanh",
            "bias": linear[0].bias is not None,
            **{key: getattr(SAMPLER, key) for key in ("n_beta", "gamma", "step")},
            **{key: getattr(SAMPLER, key) for key in ("n_chains", "n_draws")},
        }
        (own / "problem.json").write_text(json.dumps(settings))
        weights = parameters_to_vector(module.parameters())
        save_file({"x": x, "y": y, "weights": weights}, own / "tensors.safetensors")
    assert PYTHON is not None
    subprocess.run([PYTHON, "-c", PEER, str(folder)], check=True, env=_environment(folder))
    return {name: json.loads((folder / name / "chains.json").read_text()) for name in PROBLEMS}


def _environment(folder: Path) -> dict[str, str]:
    """Without what is on our path; devinterp needs no hub."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return {**kept, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "hub")}


def ours(name: str) -> Estimate:
    module, x, y = problem(name)
    network = Network(module.double())
    x, y = x.double(), y.double()
    module.float()

    def loss(w: torch.Tensor) -> torch.Tensor:
        return torch.stack([(network(one, x) - y).square().sum(1).mean() for one in w])

    return local_learning_coefficient(loss, network.theta, SAMPLER, seed=0)


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_the_same_minimum_has_the_same_coefficient(theirs, name):
    found = ours(name)
    other = torch.tensor(theirs[name]["by_chain"], dtype=torch.float64)
    assert theirs[name]["initial"] == pytest.approx(0.0, abs=1e-8)
    error = math.hypot(*(float(c.std()) / len(c) ** 0.5 for c in (found.by_chain, other)))
    print(f"{name}: ours {found.coefficient:.3f}, devinterp {other.mean():.3f}, error {error:.3f}")
    assert found.coefficient == pytest.approx(other.mean().item(), abs=3.5 * error)
    assert error < 0.05 * found.coefficient  # or any two would agree


def test_both_find_what_is_known_of_a_linear_regression(theirs):
    """With the step's own part (`sgld.py`); and up to the way to where chains settle."""
    module, x, _ = problem("linear")
    curvatures = 2 * eigenvalues(gauss_newton(Network(module.double()), x.double()))
    module.float()
    a = SAMPLER.n_beta * curvatures + SAMPLER.gamma
    known = (SAMPLER.n_beta * curvatures / (2 * a * (1 - SAMPLER.step * a / 4))).sum().item()
    for coefficient in (ours("linear").coefficient, sum(theirs["linear"]["by_chain"]) / 6):
        assert coefficient == pytest.approx(known, rel=0.15)
