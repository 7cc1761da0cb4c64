"""Small random models and tokenizers that many tests share."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from elsewhere import ELSEWHERE, present
from hub_server import Hub

from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.tokenizer import Tokenizer, train_bpe

if "PYTEST_XDIST_WORKER" in os.environ:
    # The tests share the cores: several threads each would wait for one another.
    os.environ["OMP_NUM_THREADS"] = "1"  # of commands that tests start
    torch.set_num_threads(1)

DEVICES = [
    "cpu",
    pytest.param(ELSEWHERE, marks=pytest.mark.slow),
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Every device that is present, and one that the CPU plays: see tests/elsewhere.py."""
    with present() if request.param == ELSEWHERE else nullcontext():
        yield torch.device(request.param)


def computes(device: torch.device) -> None:
    """Skip what tests nothing but arithmetic, at some length, on the device that has none."""
    if device.type == ELSEWHERE:
        pytest.skip("its arithmetic is the CPU's")


def sums_in_order(device: torch.device) -> bool:
    """Whether the device repeats a sum bit for bit; accelerators add as their threads arrive."""
    return device.type in ("cpu", ELSEWHERE)


SMALL = GPT2Config(n_layer=3, n_head=4, d_model=32, d_mlp=80, n_ctx=16, n_vocab=300)


def random_gpt2(config: GPT2Config = SMALL, *, seed: int = 0) -> GPT2:
    """A GPT-2 in which every tensor matters: biases and LayerNorms are random too."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT2(config).requires_grad_(False)
    for name, p in model.named_parameters():
        wide = p.ndim == 2 and not name.startswith("W_")
        p.normal_(0.0, 1.5 * p.shape[0] ** -0.5 if wide else 0.3, generator=generator)
        if ".ln" in name or name.startswith("ln"):
            p += 1.0 if name.endswith(".w") else 0.0
    return model.eval()


@contextmanager
def parts_run(model: GPT2) -> Iterator[list[str]]:
    """Within, every part of the model that runs adds its name: "blocks.0.ln1", "blocks.0.attn"."""
    names: list[str] = []
    hooks = [
        part.register_forward_pre_hook(lambda *_, name=name: names.append(name))
        for name, part in model.named_modules()
        if name
    ]
    yield names
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="session")
def make_gpt2() -> Callable[..., GPT2]:
    """Makes small random GPT-2s: `make_gpt2(config, seed=...)`."""
    return random_gpt2


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE with at most 300 tokens."""
    return train_bpe(["the cat sat on the mat, and the dog sat on the log. " * 20], 300)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """An empty Hugging Face hub on 127.0.0.1; put repositories below `hub.folder`."""
    server = Hub(tmp_path / "hub")
    yield server
    server.stop()
