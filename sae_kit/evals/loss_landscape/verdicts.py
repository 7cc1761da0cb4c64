"""What chains of a sampler are worth: a verdict on the estimate that they come to.

- usable      chains agree with one another (R-hat up to a given value), and the second half of the
              draws with the first
- drifting    they do not. Mostly the loss still rises by more than a quarter (`rise`) from half to
              half: the estimate is too low
- no minimum  the loss fell below that of w*, beyond the spread of the chains, so the estimate says
              nothing about degeneracy
- diverged    a loss that is not finite, or far above any that chains should see

Source: R-hat is that of Gelman and Rubin (1992); the others are rules of this toolkit's.
"""

import math
from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float
from scipy import stats
from torch import Tensor

from sae_kit.evals.loss_landscape.sgld import Estimate
from sae_kit.maths import Interval

MAX_RISE = 0.25
"""What draws that have settled may rise by from their first half to their second, as a share."""

USABLE, DRIFTING, NO_MINIMUM, DIVERGED = "usable", "drifting", "no minimum", "diverged"


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Chains:
    """What all chains from one place came to."""

    traces: Float[Tensor, "chains steps"] | None
    """Losses, burn-in included; None: they diverged."""
    found: Estimate | None
    n_steps: int
    """Taken by each, or by the one that diverged."""

    def row(self, max_r_hat: float) -> dict[str, Any]:
        """Its columns of the table."""
        if self.found is None:
            return {"verdict": DIVERGED, "n_steps": self.n_steps}
        interval, rise = interval_of(self.found.by_chain), rise_of(self.found)
        settled = self.found.r_hat <= max_r_hat and rise <= MAX_RISE
        return {
            "verdict": verdict(interval, settled=settled),
            "coefficient": interval.estimate,
            "coefficient_low": interval.low,
            "coefficient_high": interval.high,
            # A sample that does not move has no spread to compare: JSON has no infinity.
            "r_hat": min(self.found.r_hat, 1e6),
            "rise": rise,
            "n_steps": self.n_steps,
        }


def check_chains(n_draws: int, max_r_hat: float) -> None:
    """Refuse settings of which no verdict can come.

    Raises:
        ValueError: names the field.
    """
    if n_draws < 4:
        raise ValueError(f"n_draws: {n_draws}; give 4 or more, to compare their halves")
    if max_r_hat <= 1:
        raise ValueError(f"max_r_hat: {max_r_hat}; chains that agree have 1; give more")


def interval_of(by_chain: Float[Tensor, " chains"]) -> Interval:
    """The mean over independent chains with its 95 % interval by Student's t."""
    mean, n = by_chain.mean().item(), len(by_chain)
    arm = float(stats.t.ppf(0.975, n - 1)) * by_chain.std().item() / math.sqrt(n)
    return Interval(mean, mean - arm, mean + arm)


def rise_of(found: Estimate) -> float:
    """How much larger the second half of the draws makes the coefficient than the first, as a share
    of the whole; 0 where nothing moves.
    """
    above = found.losses.double().mean(0) - found.initial
    half = len(above) // 2
    change = (above[-half:].mean() - above[:half].mean()).item()
    return change / abs(above.mean().item()) if change else 0.0


def verdict(coefficient: Interval, *, settled: bool) -> str:
    """What estimates of one step size are worth: see the module's docstring."""
    if coefficient.high < 0:
        return NO_MINIMUM
    return USABLE if settled else DRIFTING
