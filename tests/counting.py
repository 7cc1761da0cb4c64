"""A language model in training whose next token is always known: it counts."""

from pathlib import Path

import torch
from torch import Tensor

from sae_kit.data.tokens import Contexts, ContextStream
from sae_kit.dist import World
from sae_kit.models.gpt2 import GPT2Config
from sae_kit.train.language_model import LanguageModelConfig, LanguageModelTask
from sae_kit.train.loop import Loop, LoopPlan

N_POS, VOCAB = 12, 32
ARCHITECTURE = GPT2Config(n_layer=2, n_head=2, d_model=32, d_mlp=64, n_ctx=N_POS, n_vocab=VOCAB)
CONFIG = LanguageModelConfig(
    n_tokens=10 * 8 * N_POS,
    batch_contexts=8,
    n_warmup_steps=2,
    eval_every=5,
    log_every=5,
    n_eval_contexts=10,
    bf16=False,
)


class Counting(Contexts):
    """Counts up from a random number, modulo the vocabulary: the next token is always known."""

    n_contexts = None
    n_tokens = None
    fingerprint = "counting"

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index + self.offset)
        start = torch.randint(VOCAB, (), generator=generator)
        return (start + torch.arange(N_POS)) % VOCAB


def stream(offset: int = 0) -> ContextStream:
    """Contexts that count."""
    return ContextStream(Counting(offset), world=World(0, 1))


def fit(
    task: LanguageModelTask, folder: Path, *, resume: bool = False, n_steps: int | None = None
) -> Loop:
    """Train to the end, or for `n_steps`; from the newest checkpoint if `resume`."""
    c = task.config
    plan = LoopPlan(
        n_steps=n_steps or task.n_steps, log_every=c.log_every, checkpoint_every=3, n_checkpoints=2
    )
    loop = Loop(task, plan, folder=folder, loggers=[])
    if resume:
        assert loop.resume()
    loop.run()
    return loop
