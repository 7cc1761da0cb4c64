"""The loss of a language model as a function of its weights: one vector in, nats per token out.

Two losses, each a mean over the predicted tokens of some contexts:

- cross_entropy     of the next token: what the model was trained on
- behaviour         KL(the model as it is || the model with these weights): 0 at the weights
                    themselves, which are therefore a minimum whatever the model has learnt

A chain of a sampler sees some contexts at a time, in an order of its own that goes through all of
them before any comes again. What these contexts cost the model as it is, is subtracted, and the
mean over all of them added: the expectation stays, and the noise of which contexts come goes.

Source: the behavioural loss is Bushnaq et al. 2024's (2405.10927), section 2, with KL in the place
of squared differences of outputs.
"""

from collections.abc import Iterator
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from sae_kit.evals.loss_landscape.sgld import Loss
from sae_kit.maths import Predictions, cross_entropy_rows, kl_rows
from sae_kit.models.gpt2 import GPT2

Kind = Literal["cross_entropy", "behaviour"]


@final
class WeightLoss:
    """A model's loss on some contexts, by its weights.

    Args:
        model: whose weights are moved; it is left as it is.
        contexts: the data.
        kind: of the loss: see the module's docstring.
        batch: contexts at once, and in a sampler's step.
    """

    def __init__(
        self, model: GPT2, contexts: Int[Tensor, "n pos"], *, kind: Kind, batch: int
    ) -> None:
        self._contexts, self._batch = contexts.to(model.device), min(batch, len(contexts))
        self._loss = {"cross_entropy": _CrossEntropy, "behaviour": _Behaviour}[kind](model)
        parameters = dict(self._loss.named_parameters())
        self._shapes = {name: p.shape for name, p in parameters.items()}
        self.weights: Float[Tensor, " d"] = parameters_to_vector(parameters.values()).detach()
        """w*: those of the model."""
        with torch.no_grad():
            self._clean = torch.cat([self._loss(rows) for rows in self._contexts.split(batch)])

    @property
    def n_data(self) -> int:
        """Predicted tokens."""
        return len(self._contexts) * (self._contexts.shape[1] - 1)

    @property
    def initial(self) -> float:
        """The loss at w*, on all contexts."""
        return self._clean.double().mean().item()

    def of_chain(self, generator: torch.Generator) -> Loss:
        """The loss on other contexts at each call, in an order that `generator` (on CPU) draws."""
        order = self._order(generator)

        def loss(w: Float[Tensor, "chains d"]) -> Float[Tensor, " chains"]:
            chosen = next(order).to(self._contexts.device)
            rows, usual = self._contexts[chosen], self._clean[chosen].mean()
            values = [
                functional_call(self._loss, self._split(one), (rows,)).mean() for one in w.unbind()
            ]
            return torch.stack(values) - usual + self.initial

        return loss

    def _order(self, generator: torch.Generator) -> Iterator[Int[Tensor, " batch"]]:
        left = torch.empty(0, dtype=torch.long)
        while True:
            if len(left) < self._batch:
                left = torch.cat([left, torch.randperm(len(self._contexts), generator=generator)])
            yield left[: self._batch]
            left = left[self._batch :]

    def _split(self, w: Float[Tensor, " d"]) -> dict[str, Tensor]:
        # One split has one backward, where as many slices would each have a vector of w's length.
        parts = w.split([shape.numel() for shape in self._shapes.values()])
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}


@final
class _CrossEntropy(nn.Module):
    def __init__(self, model: GPT2) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, " batch"]:
        """Of each context."""
        logits = self.model.run(tokens).logits
        assert logits is not None
        return cross_entropy_rows(logits[:, :-1], tokens[:, 1:]).mean(1)


@final
class _Behaviour(nn.Module):
    def __init__(self, model: GPT2) -> None:
        super().__init__()
        self.model = model
        # In a tuple, so that it is no submodule: its weights stay as they are.
        self._clean = (_frozen(model),)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, " batch"]:
        """Of each context."""
        with torch.no_grad():
            clean = self._clean[0].run(tokens).logits
        logits = self.model.run(tokens).logits
        assert logits is not None
        assert clean is not None
        kl = kl_rows(Predictions(clean[:, :-1].flatten(0, 1)), logits[:, :-1].flatten(0, 1))
        return kl.view(len(tokens), -1).mean(1)


def _frozen(model: GPT2) -> GPT2:
    """A copy that keeps the weights while the model's are replaced."""
    copy = GPT2(model.config).to(model.device, model.W_E.dtype)
    copy.load_state_dict(model.state_dict())
    return copy.requires_grad_(False)
