"""TransformerLens: seconds for a perturbed activation, each by a full pass with a hook.

    PYTHON benchmarks/peers/transformer_lens_driver.py > lens.jsonl
    python benchmarks/perturbation.py --peers lens.jsonl

GPT-2 small's shape, random weights. A hook adds a random direction at the last position (or at all)
of `blocks.6.hook_resid_pre`; L2 of the last residual stream and KL of the predictions against the
clean run are computed, as in benchmarks/perturbation.py. It runs in the environment of SAELens.
"""

import argparse
from typing import final

import clock
import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

READ = "blocks.11.hook_resid_post"


def random_gpt2(n_ctx: int) -> HookedTransformer:
    """A model of GPT-2 small's shape."""
    config = HookedTransformerConfig(
        n_layers=12,
        d_model=768,
        n_ctx=n_ctx,
        d_head=64,
        n_heads=12,
        d_mlp=3072,
        d_vocab=50257,
        act_fn="gelu_new",
        normalization_type="LN",
        seed=0,
    )
    return HookedTransformer(config)


@final
class Experiment:
    """Random perturbations of one random prompt."""

    def __init__(self, options: argparse.Namespace, where: slice) -> None:
        self.model = random_gpt2(options.context)
        self.tokens = torch.randint(50257, (1, options.context))
        self.where, self.site = where, f"blocks.{options.layer}.hook_resid_pre"
        n_pos = len(range(options.context)[where])
        self.deltas = torch.randn(options.batch, n_pos, 768)
        self.clean = self.run(self.tokens, [])  # once a prompt; not in the time

    @torch.no_grad()
    def run(self, tokens: Tensor, hooks: list) -> tuple[Tensor, Tensor]:
        """The last residual stream and the log probabilities at the perturbed positions."""
        kept: list[Tensor] = []

        def keep(x: Tensor, hook: object) -> None:
            kept.append(x[:, self.where])

        logits = self.model.run_with_hooks(tokens, fwd_hooks=[*hooks, (READ, keep)])
        return kept[0], logits[:, self.where].log_softmax(-1)

    @torch.no_grad()
    def responses(self) -> tuple[Tensor, Tensor]:
        """L2 and KL of all perturbations."""

        def perturb(x: Tensor, hook: object) -> Tensor:
            x[:, self.where] += self.deltas
            return x

        rows = self.tokens.expand(len(self.deltas), -1)
        (x, log_p), (y, log_q) = self.clean, self.run(rows, [(self.site, perturb)])
        return (y - x).norm(dim=-1), (log_p.exp() * (log_p - log_q)).sum(-1)


def main() -> None:
    """Time both kinds of perturbation."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("layer", 6), ("context", 128), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    for name, where in (("last position", slice(-1, None)), ("all positions", slice(None))):
        seconds = clock.fastest(Experiment(options, where).responses, 3)
        clock.emit(
            {
                "name": name,
                "to": "TransformerLens, full passes",
                "seconds_per_point": seconds / options.batch,
                "shapes": vars(options) | {"threads": torch.get_num_threads()},
                "versions": clock.versions(["transformer-lens"]),
            }
        )


if __name__ == "__main__":
    main()
