"""degeneracy: how many of a model's parameters change nothing, layer by layer.

Held-out text is run through the model; random signs over the logits are differentiated back to the
output of every weight matrix. Then, for every matrix of every block,

- rows of kind "matrix": the ranks of its inputs (`ranks.py`; the constant that the bias multiplies
  is one of them) and of the gradients at its outputs, at several tolerances, and the share of its
  parameters that are free: changing them changes no logit on this text. `effective_*` are
  participation ratios.
- rows of kind "neurons": how many neurons of the block's MLP are never or always on, and how many
  switch together with another (`synchronised.py`), exactly and at up to `near` of the positions.

Arrays: spectrum/<matrix>/inputs and .../gradients, eigenvalues, largest first.

Source: Bushnaq et al. 2024 (2405.10927), section 3, for the loss that compares the model with
itself ("behavioural loss"), at its minimum. The local learning coefficient has an evaluation
of its own, `learning_coefficient.py`.

Limits: free at one matrix with all others held; interactions between free directions of several
matrices are not counted. A rank cannot exceed the number of positions: ask for several times the
widest layer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.config import check_counts
from sae_kit.evals.base import Evaluation, Subject
from sae_kit.evals.loss_landscape.ranks import Free, Grams, effective_rank
from sae_kit.evals.loss_landscape.synchronised import Patterns
from sae_kit.log import Progress
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Site
from sae_kit.result import Result

if TYPE_CHECKING:
    import matplotlib.figure

FIRST = "blocks.0.hook_resid_pre"

MATRICES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "attn.W_qkv": ("ln1.hook_normalized", ("attn.hook_q", "attn.hook_k", "attn.hook_v")),
    "attn.W_O": ("attn.hook_z", ("hook_attn_out",)),
    "mlp.W_in": ("ln2.hook_normalized", ("mlp.hook_pre",)),
    "mlp.W_out": ("mlp.hook_post", ("hook_mlp_out",)),
}
"""Matrix of a block -> the site of its input, and those of its output. The norms' gains and biases
stand between the first and the matrix; they change no rank."""


@final
@dataclass(frozen=True, kw_only=True)
class Degeneracy(Evaluation, name="degeneracy"):
    """Ranks, free parameters, neurons that switch together."""

    n_tokens: int = 8192
    """Of held-out text; several times the widest layer."""
    contexts_per_pass: int = 8
    """Contexts at once."""
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    """Shares of the largest eigenvalue up to which one counts as zero."""
    near: float = 0.01
    """Share of the positions at which neurons that switch together may differ."""

    def __post_init__(self) -> None:
        check_counts(self, "n_tokens", "contexts_per_pass")
        if not self.tolerances or not all(0 < tolerance < 1 for tolerance in self.tolerances):
            raise ValueError(f"tolerances: {list(self.tolerances)}; give shares between 0 and 1")
        if not 0 <= self.near < 0.5:
            raise ValueError(f"near: {self.near} of the positions; give at least 0, less than 0.5")

    def run(self, subject: Subject) -> Result:
        """See Evaluation.run: rows of matrices by block and tolerance, then of neurons by block."""
        model = subject.model
        contexts = subject.contexts(self.n_tokens)
        widest = max(model.config.d_model, model.config.d_mlp) + 1
        if contexts.numel() < widest:
            raise ValueError(
                f"n_tokens: {contexts.numel()} tokens of held-out text cannot show the rank of a "
                f"layer of {widest}; give {4 * widest} or more"
            )
        grams, patterns = _empty(model)
        generator = torch.Generator().manual_seed(subject.seed)
        progress = Progress(contexts.numel())
        for tokens in contexts.split(self.contexts_per_pass):
            _add(model, tokens.to(model.device), generator, grams, patterns)
            progress.update(tokens.numel())
        progress.close()
        spectra = {name: gram.spectra() for name, gram in grams.items()}
        rows = [*self._matrix_rows(spectra), *self._neuron_rows(patterns)]
        finest = [row for row in rows if row.get("tolerance") == min(self.tolerances)]
        n_free = sum(row["n_free"] for row in finest)
        return Result(
            name=self.word,
            scalars={
                "n_tokens": contexts.numel(),
                "share_free": n_free / sum(row["n_parameters"] for row in finest),
                "n_synchronised": sum(row.get("n_synchronised", 0) for row in rows),
            },
            rows=tuple(rows),
            arrays={
                f"spectrum/{name}/{what}": spectrum.cpu()
                for name, both in spectra.items()
                for what, spectrum in zip(("inputs", "gradients"), both, strict=True)
            },
            provenance=self.provenance(subject),
        )

    def _matrix_rows(
        self, spectra: Mapping[str, tuple[Tensor, Tensor]]
    ) -> Iterator[dict[str, Any]]:
        for name, (inputs, gradients) in spectra.items():
            for tolerance in self.tolerances:
                free = Free.of(inputs, gradients, tolerance)
                yield {
                    "kind": "matrix",
                    "block": int(name.split(".")[1]),
                    "matrix": name.split(".", 2)[2],
                    "tolerance": tolerance,
                    "n_parameters": free.n_parameters,
                    "rank_inputs": free.rank_inputs,
                    "rank_gradients": free.rank_gradients,
                    "n_free": free.n_free,
                    "share_free": free.share,
                    "effective_inputs": effective_rank(inputs),
                    "effective_gradients": effective_rank(gradients),
                }

    def _neuron_rows(self, patterns: Mapping[int, Patterns]) -> Iterator[dict[str, Any]]:
        for block, seen in patterns.items():
            exact, near = seen.groups(), seen.groups(self.near)
            yield {
                "kind": "neurons",
                "block": block,
                "n_never": exact.n_never,
                "n_always": exact.n_always,
                "n_synchronised": int(exact.sizes.sum()),
                "n_nearly_synchronised": int(near.sizes.sum()),
                "largest_near_group": int(near.sizes.max()) if len(near.sizes) else 1,
            }

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """See Evaluation.plot: `spectra` of inputs and gradients, `free` shares by tolerance."""
        from sae_kit.viz import spectra

        model = result.provenance["subject"]["model"]
        tokens = f"{result.scalars['n_tokens']:,} tokens"
        blocks = sorted({row["block"] for row in result.rows})
        panels = {
            f"{matrix}, {what}": {
                block: result.arrays[f"spectrum/blocks.{block}.{matrix}/{what}"] for block in blocks
            }
            for matrix in MATRICES
            for what in ("inputs", "gradients")
        }
        rows = [row for row in result.rows if row["kind"] == "matrix"]
        return {
            "spectra": spectra.by_block(
                panels,
                title=f"What the matrices of {model} see and pass on ({tokens}; blocks from 1)",
            ),
            "free": spectra.free_shares(
                rows, title=f"Parameters of {model} that change no prediction ({tokens})"
            ),
        }


def _empty(model: GPT2) -> tuple[dict[str, Grams], dict[int, Patterns]]:
    grams = {}
    for block in range(model.config.n_layer):
        for matrix, (source, outputs) in MATRICES.items():
            d_in = model.width(f"blocks.{block}.{source}")
            d_out = sum(model.width(f"blocks.{block}.{site}") for site in outputs)
            grams[f"blocks.{block}.{matrix}"] = Grams(d_in, d_out, device=model.device)
    d_mlp = model.config.d_mlp
    patterns = {i: Patterns(d_mlp, device=model.device) for i in range(model.config.n_layer)}
    return grams, patterns


def _add(
    model: GPT2,
    tokens: Int[Tensor, "batch pos"],
    generator: torch.Generator,
    grams: Mapping[str, Grams],
    patterns: Mapping[int, Patterns],
) -> None:
    """Take in some contexts."""
    acts, gradients = _with_gradients(model, tokens, generator)
    for name, gram in grams.items():
        _, block, matrix = name.split(".", 2)
        source, outputs = MATRICES[matrix]
        inputs = acts[f"blocks.{block}.{source}"].flatten(2).flatten(0, 1)
        seen = [gradients[f"blocks.{block}.{site}"].flatten(2).flatten(0, 1) for site in outputs]
        gram.update(inputs, torch.cat(seen, 1))
    for number, pattern in patterns.items():
        pattern.update(acts[f"blocks.{number}.mlp.hook_pre"].flatten(0, 1) > 0)


def _with_gradients(
    model: GPT2, tokens: Int[Tensor, "batch pos"], generator: torch.Generator
) -> tuple[dict[Site, Tensor], dict[Site, Float[Tensor, "batch pos *axes"]]]:
    """Activations, and the gradients there of the logits summed with random signs."""
    blocks = range(model.config.n_layer)
    outputs = [f"blocks.{i}.{o}" for i in blocks for _, sites in MATRICES.values() for o in sites]
    inputs = [f"blocks.{i}.{source}" for i in blocks for source, _ in MATRICES.values()]
    with torch.no_grad():
        x = model.run(tokens, capture=[FIRST], stop=FIRST).acts[FIRST]
    with torch.enable_grad():
        run = model.run(start=(FIRST, x.requires_grad_()), capture={*outputs, *inputs})
        assert run.logits is not None
        signs = 2 * torch.randint(2, run.logits.shape, generator=generator) - 1
        wanted = [run.acts[site] for site in outputs]
        found = torch.autograd.grad(run.logits, wanted, signs.to(run.logits))
    acts = {site: act.detach() for site, act in run.acts.items()}
    return acts, dict(zip(outputs, found, strict=True))
