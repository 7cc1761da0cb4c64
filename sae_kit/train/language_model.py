"""Training loop for a GPT-2-architecture language model: made for the demo model, and for
fine-tuning.

Matrices inside the blocks are trained with Muon (Jordan et al. 2024: momentum, orthogonalised), or
with AdamW as the rest is (embeddings, gains, biases). Muon learns from fewer tokens; PyTorch's
orthogonalises in bfloat16, which processors without fast bfloat16 take many times longer for than
for the whole rest of a step. The learning rate is a trapezoid: short warm-up, flat,
long linear decay. The forward pass runs in bfloat16 autocast where the CPU or GPU has it; weights
and optimiser stay float32.

Limits: one device; the data order is the token source's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_kit.config import check_counts
from sae_kit.data.tokens import TokenSource, take
from sae_kit.models.gpt2 import GPT2
from sae_kit.products import fast_bf16
from sae_kit.state import State
from sae_kit.train.loop import Metrics
from sae_kit.train.no_ln import KeepNorms, Norms
from sae_kit.train.schedule import trapezoid


@final
@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """How to train a language model."""

    n_tokens: int
    """Tokens to train on, over all epochs."""
    batch_contexts: int = 32
    """Contexts per optimiser step."""
    contexts_per_pass: int = 32
    """Contexts in one forward and backward pass, at most; a step adds up several passes."""
    matrices: Literal["muon", "adamw"] = "muon"
    """What trains the matrices in the blocks."""
    lr_matrix: float = 0.004
    """Its peak learning rate (Muon's update RMS is matched to AdamW's)."""
    lr_other: float = 0.004
    """AdamW's peak learning rate, for embeddings, gains and biases."""
    weight_decay: float = 0.05
    """Decoupled weight decay of matrices and embeddings."""
    n_warmup_steps: int = 100
    """Steps of linear warm-up."""
    decay_fraction: float = 0.5
    """The share of the run, at its end, over which the rate falls linearly to zero."""
    grad_clip: float = 1.0
    """Largest gradient norm."""
    bf16: bool = True
    """Whether to run the forward pass in bfloat16 autocast, where the device computes it fast."""
    eval_every: int = 250
    """Steps between held-out losses; a multiple of log_every."""
    n_eval_contexts: int = 64
    """Contexts per held-out loss."""
    log_every: int = 10
    """Steps between log lines."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    n_checkpoints: int = 2
    """Checkpoints kept."""
    snapshots: tuple[int, ...] = ()
    """Finished steps at which the weights are kept for good, as a model; 0: before the first."""
    seed: int = 0
    """Draws the initial weights and the order of the data."""

    def __post_init__(self) -> None:
        check_counts(
            self,
            "n_tokens",
            "batch_contexts",
            "contexts_per_pass",
            "eval_every",
            "n_eval_contexts",
            "log_every",
            "checkpoint_every",
            "n_checkpoints",
        )
        for name in ("lr_matrix", "lr_other", "grad_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")
        for name in ("weight_decay", "n_warmup_steps", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative; give 0 or more")
        if min(self.snapshots, default=0) < 0:
            raise ValueError(f"snapshots: {list(self.snapshots)} has a negative step")
        if not 0 <= self.decay_fraction <= 1:
            raise ValueError(f"decay_fraction: {self.decay_fraction} is not between 0 and 1")
        if self.eval_every % self.log_every:
            raise ValueError(
                f"eval_every: {self.eval_every} is no multiple of log_every={self.log_every}, and "
                "what is measured between two log lines is not seen"
            )


@final
class LanguageModelTask:
    """One language model in training: a `sae_kit.train.loop.Task`."""

    def __init__(
        self,
        config: LanguageModelConfig,
        model: GPT2,
        source: TokenSource,
        heldout: Mapping[str, TokenSource],
        norms: Callable[[GPT2, Tensor, int], Norms] | None = None,
    ):
        """`source` yields training contexts; each of `heldout` is measured under its name.

        `norms` says what becomes of the model's norms, given the model, some held-out contexts and
        the number of steps; None: nothing.

        Raises:
            ValueError: nothing is held out.
        """
        if not heldout:
            raise ValueError("heldout: empty; give a source of text that is not trained on")
        self.config, self.model, self.source = config, model, source
        self.device = model.W_E.device
        self.autocast = config.bf16 and fast_bf16(self.device)
        self.n_tokens_per_step = config.batch_contexts * source.context_size
        self.n_steps = max(1, config.n_tokens // self.n_tokens_per_step)
        self.optimizers = _optimizers(model, config)
        self.heldout = {name: take(held, config.n_eval_contexts) for name, held in heldout.items()}
        contexts = torch.cat(list(self.heldout.values()))
        self.norms = KeepNorms() if norms is None else norms(model, contexts, self.n_steps)

    def step(self, step: int, *, measure: bool) -> Metrics:
        """One optimiser step on the next `batch_contexts` contexts."""
        scale = self._set_learning_rate(step)
        self.norms.before(step)
        tokens = take(self.source, self.config.batch_contexts).to(self.device)
        loss = torch.zeros((), device=self.device)
        for some in tokens.split(self.config.contexts_per_pass):
            part = self.loss(some) * (len(some) / len(tokens))
            part.backward()
            loss += part.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        metrics: dict[str, Tensor | int | float] = {
            "loss": loss,
            "grad_norm": norm,
            "lr_scale": scale,
            **self.norms.after(loss),
        }
        if (step + 1) % self.config.eval_every == 0 or step + 1 == self.n_steps:
            for name, contexts in self.heldout.items():
                metrics[f"heldout/{name}"] = self._heldout_loss(contexts)
        return metrics

    def loss(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
        """Mean next-token cross-entropy, in nats."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            read = tokens[:, :-1]
            logits = self.model.run(read, edit=self.norms.edits(read)).logits
        assert logits is not None
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    @torch.no_grad()
    def _heldout_loss(self, contexts: Tensor) -> float:
        batches = contexts.split(self.config.contexts_per_pass)
        return sum(float(self.loss(b.to(self.device))) * len(b) for b in batches) / len(contexts)

    def _set_learning_rate(self, step: int) -> float:
        c = self.config
        scale = trapezoid(
            step,
            n_steps=self.n_steps,
            n_warmup=c.n_warmup_steps,
            n_decay=int(c.decay_fraction * self.n_steps),
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scale * group["peak_lr"]
        return scale

    def state_dict(self) -> State:
        """Weights, optimisers and the position in the data: all that a step depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict()["state"] for optimizer in self.optimizers],
            "source": self.source.state_dict(),
            "norms": self.norms.state_dict(),
        }

    def load_parts(self, parts: Sequence[State]) -> None:
        """Continue exactly; language models are trained by one process."""
        self.load_state_dict(parts[0])

    def load_state_dict(self, state: State) -> None:
        """Continue exactly from what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            # The groups come from the config, which a resumed run may not change.
            optimizer.load_state_dict(
                {"state": saved, "param_groups": optimizer.state_dict()["param_groups"]}
            )
        self.source.load_state_dict(state["source"])
        self.norms.load_state_dict(state["norms"])


def _optimizers(model: GPT2, config: LanguageModelConfig) -> list[torch.optim.Optimizer]:
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and name.startswith("blocks.")]
    embeddings = [p for name, p in named.items() if p.ndim == 2 and not name.startswith("blocks.")]
    vectors = [p for p in named.values() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": embeddings, "peak_lr": config.lr_other, "weight_decay": config.weight_decay},
        {"params": vectors, "peak_lr": config.lr_other, "weight_decay": 0.0},
    ]
    own = {"params": matrices, "peak_lr": config.lr_matrix, "weight_decay": config.weight_decay}
    if config.matrices == "adamw":
        return [_adamw([own, *groups])]
    return [torch.optim.Muon([own], adjust_lr_fn="match_rms_adamw"), _adamw(groups)]


def _adamw(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
