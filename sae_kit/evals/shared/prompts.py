"""Held-out prompts for perturbation experiments: some to be perturbed, others to compare with.

Both are contexts of the subject's held-out text, none of them twice, cut to the length asked for.
Means, covariances and real activations come from the others, so nothing is fitted on what is
measured. Positions count or not as in training: by default neither position 0 nor end-of-text
tokens do.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_kit.evals.base import Subject


@final
@dataclass(frozen=True, kw_only=True, eq=False)  # eq: tensors have no single truth value
class Prompts:
    """Tokens, and which positions count."""

    hosts: Int[Tensor, "hosts context"]
    """To be perturbed."""
    hosts_count: Bool[Tensor, "hosts context"]
    others: Int[Tensor, "others context"]
    """To draw real activations from, and to estimate moments on."""
    others_count: Bool[Tensor, "others context"]

    @staticmethod
    def of(
        subject: Subject,
        *,
        context_size: int,
        n_hosts: int,
        n_others: int,
        drop_first_position: bool,
        drop_special_tokens: bool,
    ) -> "Prompts":
        """Those of a subject; its seed draws them.

        Raises:
            ValueError: there is less text than that, or the model's context is shorter.
        """
        text = replace(subject.tokens, context_size=context_size)
        n = n_hosts + n_others
        tokens = subject.contexts(n * context_size, text)
        if len(tokens) < n:
            raise ValueError(
                f"n_pool_prompts: the held-out text has {len(tokens)} prompts of {context_size} "
                f"tokens, and n_prompts={n_hosts} with n_pool_prompts={n_others} takes {n}; ask "
                "for fewer, or shorter ones, or give more text"
            )
        counts = torch.ones_like(tokens, dtype=torch.bool)
        if drop_first_position:
            counts[:, 0] = False
        if drop_special_tokens:
            counts &= tokens != subject.language_model.tokenizer.eot_id
        return Prompts(
            hosts=tokens[:n_hosts],
            hosts_count=counts[:n_hosts],
            others=tokens[n_hosts:],
            others_count=counts[n_hosts:],
        )
