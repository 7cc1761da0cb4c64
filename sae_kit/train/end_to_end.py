"""End-to-end objectives: the code must explain what the model does, not what the activation was.

    e2e             loss = kl_coefficient * d_out * KL  +  penalties
    e2e_downstream  loss = kl_coefficient * d_out * KL  +  downstream_coefficient * E  +  penalties

KL is KL(own || spliced) of the next-token distributions in nats, averaged over the positions that
count: those of the model as it is, and with the SAE's output in the place of the activation that it
stands for, at these positions. E is the squared error that the splice leaves at later sites of the
residual stream, averaged over these sites.

Source: Braun et al. 2024, "Identifying functionally important features with end-to-end sparse
dictionary learning" (2405.12241): both losses, and the coefficients 1, and 0.5 with 2.5.

- The run begins with the local error, and changes to the loss above after `local_share` of its
  steps. An untrained SAE's output makes the model predict nonsense, and how to mend that is hardly
  to be learnt from predictions; Karvonen 2025 (2503.17272) finds that a short end-to-end phase
  after local training has most of the gain of a whole run. As there, the loss is then multiplied by
  what makes it equal to the batch's local error, so that penalties keep their weight and Adam's
  moments their scale. The learning rate is multiplied by `lr_factor`, since gradients of
  predictions are noisier. Braun et al. train end to end from the start: local_share=0, which
  leaves the loss as it stands above. docs/training.md has what this changes.
- Units. E is measured as the local error is: activations scaled to a mean norm of sqrt(width),
  squares summed over channels (relative to d_out, where the widths differ), averaged over rows. KL
  is multiplied by d_out for the same reason: predicting the mean costs about d_out in a local loss,
  and several d_out here. So an architecture's penalties keep their weight against the loss. Braun
  et al. divide all by d_in and do not scale activations: activations.scale_inputs=false.
- Of the architecture's own loss only the error of the reconstruction is replaced. Penalties stay,
  and with them whatever local error they contain: the auxiliary loss of dead latents, the prefixes
  of a Matryoshka SAE.
- Sites do not know of each other: each SAE has a spliced run of its own, and all compare with the
  same run of the model. Gradients reach the SAE alone.
- Time. The local part runs the model no further than to the last site that an SAE reads or writes;
  what comes behind is computed when the loss above first asks for it (`CleanRun`).
- Memory. The runs of a batch are taken one after the other, and each is differentiated before the
  next begins: beside the logits of the own runs, those of one spliced run and their gradient exist.

Limits: rows of a batch come from few contexts, in reading order; there is no shuffle buffer. KL
has float32's rounding, about 1e-6. Several processes (trainer.parallel=data) are one with as many
times the contexts only nearly: each has the same weight in the mean gradient, whether more or fewer
of its positions count, and multiplies its loss by a factor of its own, from its own part of the
batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kit.data.activations import Batch
from sae_kit.models.hooks import Site, match_sites
from sae_kit.models.splice import CleanRun
from sae_kit.sae.base import Moment
from sae_kit.train.objective import Objective, Part, SiteOutput, Trained, local_part


@dataclass(frozen=True, kw_only=True)
class SplicedObjective(Objective, ABC):
    """What end-to-end objectives share: a local beginning, then a spliced run for each SAE."""

    local_share: float = 0.7
    """Share of the run, at its start, that trains on the local error."""
    lr_factor: float = 0.25
    """Multiplies the learning rate in the rest of the run."""

    needs_contexts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.local_share < 1:
            raise ValueError(
                f"local_share: {self.local_share} leaves nothing for the objective; give at least "
                "0 and less than 1, or objective=local"
            )
        _check_positive(self, "lr_factor")

    @abstractmethod
    def spliced(self, one: Trained, batch: Batch) -> "Spliced":
        """The SAE on the batch, with what is asked of its spliced run."""

    @final
    def pace(self, at: Moment) -> float:
        """See Objective.pace."""
        return 1.0 if self._local(at) else self.lr_factor

    @final
    def _local(self, at: Moment) -> bool:
        return at.step < self.local_share * at.n_steps

    @final
    def parts(
        self,
        trained: Sequence[Trained],
        batch: Batch,
        *,
        at: Moment,
        dead: Mapping[Site, Bool[Tensor, " d_sae"]],
    ) -> Iterator[Part]:
        """One part per SAE."""
        for one in trained:
            if self._local(at):
                yield local_part(one, batch, at, dead[one.reads])
            else:
                weigh = as_much_as_local if self.local_share > 0 else as_it_stands
                yield self.spliced(one, batch).part(at, dead[one.reads], weigh)


@final
@dataclass(frozen=True, kw_only=True)
class EndToEndObjective(SplicedObjective, name="e2e"):
    """The model must predict the same with the SAE's output spliced in."""

    kl_coefficient: float = 1.0
    """Weight of d_out times the KL."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "kl_coefficient")

    def observes(self, writes: Collection[Site], known: Collection[Site]) -> list[Site]:
        """None: the predictions say it all."""
        return []

    def spliced(self, one: Trained, batch: Batch) -> "Spliced":
        """See SplicedObjective.spliced."""
        return Spliced(one, batch, {"kl": self.kl_coefficient * one.sae.d_out}, [])


@final
@dataclass(frozen=True, kw_only=True)
class DownstreamObjective(SplicedObjective, name="e2e_downstream"):
    """The model must predict the same, and compute the same on the way there."""

    kl_coefficient: float = 0.5
    """Weight of d_out times the KL."""
    downstream_coefficient: float = 2.5
    """Weight of the mean squared error at the later sites."""
    downstream_sites: str | tuple[str, ...] = "blocks.*.hook_resid_post"
    """Where that error is taken, as far as it comes after the site that the SAE writes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "kl_coefficient", "downstream_coefficient")

    def observes(self, writes: Collection[Site], known: Collection[Site]) -> list[Site]:
        """See Objective.observes: every site behind the first that is written."""
        found: set[Site] = set()
        for site in writes:
            later = self._after(site, known)
            if not later:
                raise ValueError(
                    f"objective.downstream_sites: none of {self.downstream_sites!r} comes after "
                    f"{site}; give objective=e2e, or SAEs at earlier sites"
                )
            found.update(later)
        return [site for site in known if site in found]

    def _after(self, site: Site, known: Collection[Site]) -> list[Site]:
        places = {one: i for i, one in enumerate(known)}
        sites = match_sites(self.downstream_sites, known, what="objective.downstream_sites")
        return [one for one in sites if places[one] > places[site]]

    def spliced(self, one: Trained, batch: Batch) -> "Spliced":
        """See SplicedObjective.spliced."""
        weights = {
            "kl": self.kl_coefficient * one.sae.d_out,
            "downstream": self.downstream_coefficient,
        }
        sites = self._after(one.writes, batch.runs[0].model.sites())
        return Spliced(one, batch, weights, sites)


Weigh = Callable[[Tensor, Tensor], Tensor]
"""What multiplies the spliced run's loss, from that loss and the batch's local error."""


def as_it_stands(loss: Float[Tensor, ""], local: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """1: for runs that are end-to-end from the start."""
    return torch.ones_like(loss)


def as_much_as_local(loss: Float[Tensor, ""], local: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """What makes the loss equal to the local error, as a constant."""
    return (local / loss.clamp_min(torch.finfo(loss.dtype).tiny)).detach()


def _check_positive(objective: Objective, *names: str) -> None:
    for name in names:
        if not getattr(objective, name) > 0:
            raise ValueError(f"{name}: {getattr(objective, name)} is not positive; give 0.5, say")


@final
class Spliced:
    """One SAE on one batch, its output spliced into the model's runs."""

    def __init__(
        self, one: Trained, batch: Batch, weights: Mapping[str, float], sites: Sequence[Site]
    ) -> None:
        """`weights` of the terms "kl" and, with later `sites` to compare at, "downstream"."""
        self.one, self.batch, self.weights, self.sites = one, batch, weights, sites
        self.n_rows = sum(run.n_rows for run in batch.runs)

    def part(self, at: Moment, dead: Bool[Tensor, " d_sae"], weigh: Weigh) -> Part:
        """The whole loss, and what it consists of."""
        one, batch = self.one, self.batch
        x, target = batch.acts[one.reads], batch.acts[one.writes]
        out = one.sae.forward_train(x, at)
        local = one.sae.losses(x, target, out, at=at, dead=dead)
        weights = torch.tensor(list(self.weights.values()), dtype=x.dtype, device=x.device)
        loss, terms = _RunByRun.apply(out.recon, batch.runs, self.terms, weights)
        factor = weigh(loss, local.mse)
        weights = factor * weights
        total = torch.stack([factor * loss, *local.penalties.values()]).sum()
        named = {**dict(zip(self.weights, weights * terms, strict=True)), **local.penalties}
        site = SiteOutput(
            x,
            target,
            out,
            total,
            terms={name: term.detach() for name, term in named.items()},
            measures={"KL": terms[0], "mse": local.mse.detach()},
        )
        return Part(total, {one.reads: site})

    def terms(self, run: CleanRun, recon: Float[Tensor, "rows d_out"]) -> Float[Tensor, " n_terms"]:
        """KL in nats and downstream error, one run's share of each mean over the batch."""
        one, scales = self.one, self.batch.scales
        spliced = run.spliced(one.writes, recon / scales[one.writes], capture=self.sites)
        terms = [run.kl(spliced).sum()]
        errors = []
        for site in self.sites:
            own, other = (
                run.select(acts[site]).to(recon.dtype) for acts in (run.observed, spliced.acts)
            )
            relative = one.sae.d_out / own.shape[-1]
            errors.append(relative * (scales[site] * (other - own)).square().sum())
        if errors:
            terms.append(torch.stack(errors).mean())
        return torch.stack([term.to(recon.dtype) for term in terms]) / self.n_rows


class _RunByRun(torch.autograd.Function):
    """Sums terms over runs; each run's graph is gone before the next is built.

    The gradient is found on the way, so the model's graph never outlives the forward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        recon: Tensor,
        runs: Sequence[CleanRun],
        terms_of: Callable[[CleanRun, Tensor], Tensor],
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sums, gradients = torch.zeros_like(weights), []
        for run, rows in zip(runs, recon.split([run.n_rows for run in runs]), strict=True):
            with torch.enable_grad():
                rows = rows.detach().requires_grad_()
                terms = terms_of(run, rows)
                gradients += torch.autograd.grad(weights @ terms, rows)
            sums += terms.detach()
        ctx.save_for_backward(torch.cat(gradients))
        ctx.mark_non_differentiable(sums)
        return weights @ sums, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None
