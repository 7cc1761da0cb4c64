"""TransformerLens: seconds for a perturbed activation, each by a full pass with a hook.

    PYTHON benchmarks/peers/transformer_lens_driver.py > lens.jsonl
    python benchmarks/perturbation.py --peers lens.jsonl

GPT-2 small's shape, random weights. A hook adds a random direction at the last position (or at all)
of `blocks.6.hook_resid_pre`; L2 of the last residual stream and KL of the predictions against the
clean run are computed, as in benchmarks/perturbation.py. It runs in the environment of SAELens.
"""

import argparse

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


@torch.no_grad()
def responses(
    model: HookedTransformer, tokens: Tensor, deltas: Tensor, site: str, where: slice
) -> tuple[Tensor, Tensor]:
    """L2 and KL of some perturbations of one prompt."""
    kept: list[Tensor] = []

    def perturb(x: Tensor, hook: object) -> Tensor:
        x[:, where] += deltas
        return x

    def keep(x: Tensor, hook: object) -> None:
        kept.append(x[:, where])

    clean = model.run_with_hooks(tokens, fwd_hooks=[(READ, keep)])
    rows = tokens.expand(len(deltas), -1)
    perturbed = model.run_with_hooks(rows, fwd_hooks=[(site, perturb), (READ, keep)])
    log_p, log_q = (logits[:, where].log_softmax(-1) for logits in (clean, perturbed))
    return (kept[1] - kept[0]).norm(dim=-1), (log_p.exp() * (log_p - log_q)).sum(-1)


def main() -> None:
    """Time both kinds of perturbation."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("layer", 6), ("context", 128), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    model = random_gpt2(options.context)
    tokens = torch.randint(50257, (1, options.context))
    site = f"blocks.{options.layer}.hook_resid_pre"
    for name, where in (("last position", slice(-1, None)), ("all positions", slice(None))):
        deltas = torch.randn(options.batch, len(range(options.context)[where]), 768)
        seconds = clock.fastest(lambda: responses(model, tokens, deltas, site, where), 3)  # noqa: B023
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
