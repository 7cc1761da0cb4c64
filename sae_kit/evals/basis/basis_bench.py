"""What an interaction basis is tested on: contexts, activations, clean predictions."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.evals.base import Subject
from sae_kit.evals.basis.node_network import NodeNetwork, of_gpt2, prefix_of
from sae_kit.maths import Predictions, bootstrap_interval
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Prefix, Site
from sae_kit.sae.base import SAE


@final
class Bench:
    """A subject's model in float64, its node layers, and their activations on some contexts.

    Args:
        subject: whose held-out text is read.
        sites: the node layers, in the model's order.
        context_size: tokens in a context, the end-of-text token before them included.
        n_contexts: to fit on.
        n_test_contexts: to test on.
        batch: contexts at once.

    Raises:
        ValueError: there is less text than that.
    """

    def __init__(
        self,
        subject: Subject,
        sites: Sequence[Site],
        *,
        context_size: int,
        n_contexts: int,
        n_test_contexts: int,
        batch: int,
    ) -> None:
        text = replace(subject.tokens, context_size=context_size, prepend_bos=True)
        n = n_contexts + n_test_contexts
        tokens = subject.contexts(n * context_size, text).to(subject.device)
        if len(tokens) < n:
            raise ValueError(
                f"n_contexts: the held-out text has {len(tokens)} contexts of {context_size} "
                f"tokens, and n_contexts with n_test_contexts takes {n}; ask for fewer"
            )
        self.seed, self._batch = subject.seed, min(batch, n_test_contexts)
        self._model: GPT2 = deepcopy(subject.model).double()
        first = self._model.run(tokens[:1, :1], keep_prefix=True).prefix
        assert first is not None
        self._prefix: Prefix = first
        self.network: NodeNetwork = of_gpt2(self._model, sites, first)
        self.fitted = self._activations(tokens[:n_contexts])
        """`[n_contexts pos d_model]` at every node layer; the first token is left out."""
        self.tested = self._activations(tokens[n_contexts:])
        """On other contexts."""
        batches = self.tested[sites[0]].split(self._batch)
        self._clean = [self._predictions(sites[0], x) for x in batches]

    def first_batch(self, site: Site) -> Float[Tensor, "contexts pos d_model"]:
        """The first batch of tested contexts."""
        return self.tested[site][: self._batch]

    @torch.no_grad()
    def kl(
        self, site: Site, x: Float[Tensor, "contexts pos d_model"]
    ) -> Float[Tensor, "contexts pos"]:
        """KL(clean || the run on from `x` at `site`), in nats, of all tested contexts or of the
        first batches of them.
        """
        batches = x.split(self._batch)
        found = [
            clean.kl(self._predictions(site, rows)).view(rows.shape[:2])
            for clean, rows in zip(self._clean[: len(batches)], batches, strict=True)
        ]
        return torch.cat(found)

    def interval(self, kl: Float[Tensor, "contexts pos"]) -> Mapping[str, float]:
        """The mean per token with its 95 % bootstrap interval over contexts."""
        found = bootstrap_interval(kl.mean(1), seed=self.seed)
        return {"kl": found.estimate, "kl_low": found.low, "kl_high": found.high}

    @torch.no_grad()
    def _activations(self, tokens: Tensor) -> dict[Site, Tensor]:
        names = self.network.names
        runs = [
            self._model.run(some, capture=names, stop=names[-1])
            for some in tokens.split(self._batch)
        ]
        return {name: torch.cat([run.acts[name][:, 1:] for run in runs]) for name in names}

    @torch.no_grad()
    def _predictions(self, site: Site, x: Tensor) -> Predictions:
        run = self._model.run(start=(site, x), prefix=prefix_of(self._prefix, len(x)))
        assert run.logits is not None
        return Predictions(run.logits.flatten(0, 1))


@final
class Latents:
    """An SAE's latents in the place of a basis: which matter is told by some activations.

    A latent's contribution is the variance of its activation times the squared length of its
    decoder row.
    """

    def __init__(self, sae: SAE, fitted: Float[Tensor, "contexts pos d_model"]) -> None:
        self._sae = sae
        codes = self._encode(fitted)
        self._mean = codes.mean(0)
        contribution = codes.var(0) * sae.W_dec.detach().square().sum(-1)
        self._order = contribution.argsort(descending=True)

    @torch.no_grad()
    def kept(
        self, x: Float[Tensor, "contexts pos d_model"], k: int
    ) -> Float[Tensor, "contexts pos d_model"]:
        """The reconstruction with all but the `k` most contributing latents at their mean."""
        codes = self._encode(x)
        others = self._order[k:]
        codes[:, others] = self._mean[others]
        rows = self._sae.reconstruct(x.flatten(0, 1).to(codes), codes)
        return rows.view(x.shape).to(x)

    @torch.no_grad()
    def _encode(self, x: Tensor) -> Tensor:
        return self._sae.encode(x.flatten(0, 1).to(self._sae.W_dec)).clone()
