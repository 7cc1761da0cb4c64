"""What is put in the place of an activation to see whether an SAE's error does unusual harm.

With x the activation, SAE(x) its reconstruction and epsilon = |SAE(x) - x|, of every token its own:

- sae              SAE(x)
- norm_corrected   SAE(x) |x| / |SAE(x)|: the error without its shrinkage
- shrink_only      x |SAE(x)| / |x|: the shrinkage without the rest of the error
- isotropic        x + epsilon d, d a random unit vector
- cov_mixture      the same, d = v1 - v2 with v1, v2 ~ N(mu, Sigma), scaled to length 1
- real_mixture     the same, d = a1 - a2 with two real activations of other prompts
- theta_to_sae     a random vector at the angle to x that SAE(x) has, of the norm of SAE(x)
- theta_to_x       the same, of the norm of x
- zero             0
- mean             the mean activation

Isotropic, cov_mixture and real_mixture are as far from x as SAE(x) is, token by token; ablations
are further away and give the scale.

Source: Gurnee 2024 (sae, norm_corrected, shrink_only, isotropic, theta_*), Lee and Heimersheim 2024
(2410.12555; the mixtures).
"""

from abc import ABC, abstractmethod
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sae_kit.evals.directions.directions import DIRECTIONS, Given, unit


class Substitution(ABC):
    """A way to replace activations of which an SAE's reconstruction is known."""

    name: ClassVar[str]

    @abstractmethod
    def of(
        self, given: Given, recon: Float[Tensor, "hosts pos d_model"]
    ) -> Float[Tensor, "hosts pos d_model"]:
        """What takes the place of `given.base`."""


@final
class Reconstruction(Substitution):
    """The SAE's output."""

    name = "sae"

    def of(self, given: Given, recon: Tensor) -> Float[Tensor, "hosts pos d_model"]:
        return recon


@final
class NormCorrected(Substitution):
    """The SAE's output, scaled to the norm of the activation."""

    name = "norm_corrected"

    def of(self, given: Given, recon: Tensor) -> Float[Tensor, "hosts pos d_model"]:
        return unit(recon) * _norm(given.base)


@final
class ShrinkOnly(Substitution):
    """The activation, scaled to the norm of the SAE's output."""

    name = "shrink_only"

    def of(self, given: Given, recon: Tensor) -> Float[Tensor, "hosts pos d_model"]:
        return unit(given.base) * _norm(recon)


class _Displaced(Substitution):
    """The activation, moved as far as the SAE moves it in a direction of the same name."""

    @final
    def of(self, given: Given, recon: Tensor) -> Float[Tensor, "hosts pos d_model"]:
        direction = unit(DIRECTIONS[self.name].of(given))
        return given.base + _norm(recon - given.base) * direction


@final
class IsotropicDisplaced(_Displaced):
    """Gurnee's baseline."""

    name = "isotropic"


@final
class CovMixtureDisplaced(_Displaced):
    """The paper's baseline."""

    name = "cov_mixture"


@final
class RealMixtureDisplaced(_Displaced):
    """The same with real activations."""

    name = "real_mixture"


class _Turned(Substitution):
    """A random vector at the angle to the activation that the SAE's output has to it."""

    @final
    def of(self, given: Given, recon: Tensor) -> Float[Tensor, "hosts pos d_model"]:
        along, drawn = unit(given.base.double()), given.normal("theta").double()
        across = unit(drawn - (drawn * along).sum(-1, keepdim=True) * along)
        cosine = (unit(recon.double()) * along).sum(-1, keepdim=True)
        sine = (1 - cosine.square()).clamp(min=0).sqrt()
        return (self._length(given.base, recon) * (cosine * along + sine * across)).to(recon.dtype)

    @abstractmethod
    def _length(self, x: Tensor, recon: Tensor) -> Float[Tensor, "hosts pos 1"]:
        """The norm that it gets."""


@final
class TurnedToSAE(_Turned):
    """With the norm of the SAE's output."""

    name = "theta_to_sae"

    def _length(self, x: Tensor, recon: Tensor) -> Float[Tensor, "hosts pos 1"]:
        return _norm(recon)


@final
class TurnedToX(_Turned):
    """With the norm of the activation."""

    name = "theta_to_x"

    def _length(self, x: Tensor, recon: Tensor) -> Float[Tensor, "hosts pos 1"]:
        return _norm(x)


@final
class Zero(Substitution):
    """Zero ablation."""

    name = "zero"

    def of(self, given: Given, recon: Tensor) -> Float[Tensor, "hosts pos d_model"]:
        return given.base * 0.0


@final
class Mean(Substitution):
    """Mean ablation."""

    name = "mean"

    def of(self, given: Given, recon: Tensor) -> Float[Tensor, "hosts pos d_model"]:
        return given.pool.normal.mean.to(given.base).expand_as(given.base)


SUBSTITUTIONS: dict[str, Substitution] = {
    one.name: one
    for one in (
        Reconstruction(),
        NormCorrected(),
        ShrinkOnly(),
        IsotropicDisplaced(),
        CovMixtureDisplaced(),
        RealMixtureDisplaced(),
        TurnedToSAE(),
        TurnedToX(),
        Zero(),
        Mean(),
    )
}
"""By name."""


def _norm(x: Float[Tensor, "hosts pos d_model"]) -> Float[Tensor, "hosts pos 1"]:
    return x.norm(dim=-1, keepdim=True)
