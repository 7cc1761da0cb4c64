"""The local learning coefficient: how degenerate a loss is at a minimum, by sampling around it.

    estimate = n beta (E[L(w)] - L(w*)),   w ~ exp(-n beta L(w) - gamma/2 |w - w*|^2)

A minimum without degeneracy has half the number of parameters; every direction along which the loss
stays flat takes off up to a half. Twice the coefficient is an effective number of parameters.

Samples are drawn by stochastic gradient Langevin dynamics,

    w <- w + e/2 (-n beta grad L(w) + gamma (w* - w)) + N(0, e),

in several chains that all begin at w*, and are taken after the burn-in. With h the curvature along
a direction and a = n beta h + gamma, its samples have variance 1 / (a (1 - e a / 4)): they diverge
from e a = 4 on, and what is flatter than gamma / n beta is held by the pull alone and hardly
counts.

Source: Lau et al. 2023, "The local learning coefficient" (2308.12108); the sampler as in devinterp.
n beta is what the caller says. The theory has n / log n with n the number of data points; devinterp
takes the size of a batch for n. The two give different numbers for the same minimum unless the
sampled loss is that of all data, so a result says which was used.

Limits: the step has to be small enough to be stable and large enough to explore; `Estimate.r_hat`
and the traces tell. A negative estimate means that w* is no minimum of the loss sampled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

Loss = Callable[[Float[Tensor, "chains d"]], Float[Tensor, " chains"]]
"""Of every chain's parameters; a mean over data. It may draw a batch anew at each call."""

MAX_RISE = 1e6
"""A loss that rises by this many times its scale (1 / n beta per parameter) has diverged."""


class Diverged(ValueError):
    """Chains whose loss is no longer finite, or far above any that they should see."""

    def __init__(self, n_steps: int, step: float, loss: float, initial: float) -> None:
        """After `n_steps` steps of size `step`, at `loss` from `initial`."""
        self.n_steps = n_steps
        super().__init__(
            f"step: chains diverged after {n_steps} steps of {step:g} (a loss of {loss:.3g} from "
            f"{initial:.3g}); give a smaller one"
        )


@final
@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How samples are drawn."""

    n_beta: float
    """Inverse temperature times the number of data: `n_beta_of(n)`."""
    step: float
    """e: variance of the noise of a step."""
    gamma: float = 1.0
    """Pull towards w*."""
    n_chains: int = 10
    n_burn_in: int = 0
    """Steps of each chain before the first draw."""
    n_draws: int = 100
    """Of each chain, one a step."""
    max_rise: float = math.inf
    """Chains whose loss is this much above that of w* have diverged, besides those of MAX_RISE."""

    def __post_init__(self) -> None:
        for name in ("n_beta", "step"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")
        if self.gamma < 0 or self.n_burn_in < 0:
            raise ValueError(f"gamma: {self.gamma} and n_burn_in {self.n_burn_in} are 0 or more")
        for name in ("n_chains", "n_draws"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: {getattr(self, name)}; give 2 or more, to compare them")


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Estimate:
    """What the chains found."""

    coefficient: float
    """Mean over chains of the local learning coefficient."""
    by_chain: Float[Tensor, " chains"]
    losses: Float[Tensor, "chains draws"]
    """The traces; nats or whatever the loss is in."""
    initial: float
    """The loss at w*."""
    r_hat: float
    """Gelman and Rubin's: near 1 where chains agree with one another and with themselves."""


def n_beta_of(n: int) -> float:
    """n / log n, the inverse temperature of the theory times n."""
    if n < 3:
        raise ValueError(f"n: {n} data points have no temperature; give 3 or more")
    return n / math.log(n)


def local_learning_coefficient(
    loss: Loss, minimum: Float[Tensor, " d"], sampler: Sampler, *, seed: int
) -> Estimate:
    """Estimate the coefficient at `minimum`, with all chains side by side.

    Args:
        loss: the loss that is sampled.
        minimum: w*, a minimum of it.
        sampler: how.
        seed: draws the noise.

    Raises:
        Diverged: chains did.
        ValueError: `minimum` has no finite loss.
    """
    minimum = minimum.detach()
    with torch.no_grad():
        initial = loss(minimum[None]).item()
    generator = torch.Generator(minimum.device).manual_seed(seed)
    traces = sample(loss, minimum.expand(sampler.n_chains, -1), sampler, initial, generator)
    return estimate(traces, sampler, initial)


def sample(
    loss: Loss,
    starts: Float[Tensor, "chains d"],
    sampler: Sampler,
    initial: float,
    generator: torch.Generator,
) -> Float[Tensor, "chains steps"]:
    """The losses of chains that begin at, and are pulled to, `starts`; burn-in included.

    Args:
        loss: the loss that is sampled.
        starts: w* of every chain; as many chains as there is memory for, whatever the sampler says.
        sampler: how.
        initial: the loss at w*.
        generator: draws the noise; on the device of `starts`.

    Raises:
        Diverged: chains did.
        ValueError: `initial` is not finite.
    """
    if not math.isfinite(initial):
        raise ValueError(f"minimum: its loss is {initial}; give a point with a finite one")
    w = starts.detach().clone()
    max_rise = min(sampler.max_rise, MAX_RISE * w.shape[1] / sampler.n_beta)
    traces = []
    for n_steps in range(sampler.n_burn_in + sampler.n_draws):
        w.requires_grad_()
        with torch.enable_grad():
            values = loss(w)
        (gradient,) = torch.autograd.grad(values.sum(), w)
        worst = values.detach().max().item()
        if not values.isfinite().all() or worst - initial > max_rise:
            raise Diverged(n_steps, sampler.step, worst, initial)
        traces.append(values.detach())
        noise = torch.randn(w.shape, generator=generator, dtype=w.dtype, device=w.device)
        w = w.detach()
        drift = sampler.gamma * (starts - w) - sampler.n_beta * gradient
        w = w + sampler.step / 2 * drift + math.sqrt(sampler.step) * noise
    return torch.stack(traces, 1)


def estimate(traces: Float[Tensor, "chains steps"], sampler: Sampler, initial: float) -> Estimate:
    """What chains found, burn-in included, that were sampled so."""
    losses = traces[:, sampler.n_burn_in :]
    by_chain = sampler.n_beta * (losses.double().mean(1) - initial)
    return Estimate(by_chain.mean().item(), by_chain, losses, initial, r_hat(losses))


def r_hat(traces: Float[Tensor, "chains draws"]) -> float:
    """Gelman and Rubin's potential scale reduction (1992), each chain halved, so that one that
    drifts disagrees with itself. 1 where nothing varies.
    """
    half = traces.shape[1] // 2
    if half < 2:
        raise ValueError(f"traces: {traces.shape[1]} draws a chain; give 4 or more")
    halves = torch.cat([traces[:, :half], traces[:, -half:]]).double()
    within = halves.var(1).mean()
    between = half * halves.mean(1).var()
    if within == 0:
        return 1.0 if between == 0 else math.inf
    return (((half - 1) / half * within + between / half) / within).sqrt().item()
