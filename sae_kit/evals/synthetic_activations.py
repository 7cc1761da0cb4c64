"""synthetic_activations: do activations made of SAE latents behave like real ones?

A prompt's last position is moved from one activation toward another, in equal absolute steps, and
the model runs on from there (`perturbation.py`). A curve is the distance of the last residual
stream, the KL or the Jensen-Shannon distance of the predictions, from where it began. Two
experiments:

- toward: from the prompt's own activation toward targets of every type (`generators.py`). Real
  targets are reached through a flat stretch and a steep rise; where is the rise?
- plateau: from an activation of every type, put into the prompt, toward fresh N(mu, Sigma) draws.
  How far can one go before the output has moved by `plateau_threshold`?

Rows of kind "toward" (one for each type and response): ms, nl, auc, the mean steps of the largest
slope, of the departure from a line, and by areas (`curves.py`), with standard deviations (`*_sd`),
95 % bootstrap intervals over prompts, and `*_ks`, the Kolmogorov-Smirnov distance to the steps of
model_generated targets. Rows of kind "plateau" (one for each type): ap and its ks. Rows of kind
"audit" (one for each type): l0, norm and distance (to the prompt's activation), means over prompts;
log_frequency (mean log10 firing frequency of all their latents that fire in the text) and
top_cosine (mean cosine of all latents' decoder rows to that of their prompt's strongest; 0 where
there are no others).

Arrays: toward/<type>/<response> and plateau/<type>, curves of all prompts; steps/<type>/<what>;
ks/<response>/<what>, matrices over the types in `types`' order.

Source: Giglemiani et al. 2024 (2409.15019) and its code. Steps are counted in points; a step is
`step`, in units of the activation.

Limits: a target farther away than all steps is not reached, and near ones are passed. Thresholds of
L2 are those of one model and site; the defaults are shares of what is measured here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.config import check_counts, nearest
from sae_kit.evals.base import Evaluation, Subject
from sae_kit.evals.perturb.curves import (
    auc_step,
    departure_step,
    ks_distance,
    ks_matrix,
    max_slope_step,
    plateau_length,
)
from sae_kit.evals.perturb.hosts import Place
from sae_kit.evals.perturb.perturbation import Curves, respond
from sae_kit.evals.shared.kept import Kept
from sae_kit.evals.shared.prompts import Prompts
from sae_kit.evals.synthetic.generators import GENERATORS
from sae_kit.evals.synthetic.synthetic_bench import Bench, Maker
from sae_kit.maths import bootstrap_interval
from sae_kit.models.hooks import Site
from sae_kit.result import Result
from sae_kit.sae.base import SAE

if TYPE_CHECKING:
    import matplotlib.figure

REAL = "model_generated"
"""What all types are held against."""
FLOOR = 1e-3
"""The least rise, as a share of the median final response, that counts as one for `ms`."""

Steps = Mapping[str, Float[Tensor, " prompts"]]


@final
@dataclass(frozen=True, kw_only=True)
class SyntheticActivations(Evaluation, name="synthetic_activations"):
    """Where outputs change on the way to real, random and synthetic activations."""

    types: tuple[str, ...] = (
        "model_generated",
        "random",
        "sae_reconstruction",
        "single_latent",
        "baseline",
        "structured",
        "bag",
    )
    """Of activations: see generators.py."""
    site: str | None = None
    """Of the SAE, where activations are replaced; None: the second of the SAEs' sites, or the
    only one."""
    read: str | None = None
    """Where distances are measured; None: the last residual-stream site."""
    n_prompts: int = 200
    """To be perturbed."""
    n_pool_prompts: int = 1000
    """Others, for mean, covariance, real activations and firing frequencies."""
    prompt_size: int = 10
    """Tokens in a prompt; the last one is perturbed."""
    n_steps: int = 100
    """Steps of a curve."""
    step: float | None = None
    """Length of a step, in units of the activation; None: so that all of them are as long as the
    median distance of two real activations, and a fifth more."""
    plateau_threshold: float | None = None
    """Distance of the last residual stream at which a plateau ends; None: a tenth of its median
    norm."""
    ms_floor: float | None = None
    """The least rise of a response in a step that counts as one; None: a thousandth of the median
    final response."""
    memory_mb: int = 1024
    """What the perturbed runs take, in MiB."""

    def __post_init__(self) -> None:
        check_counts(self, "n_prompts", "n_pool_prompts", "memory_mb")
        if self.prompt_size < 2:
            raise ValueError(f"prompt_size: {self.prompt_size}; give 2 tokens or more")
        if self.n_steps < 11:
            raise ValueError(f"n_steps: {self.n_steps} are too few to see where a curve rises")
        for name in self.types:
            if name not in GENERATORS:
                close = ", ".join(nearest(name, GENERATORS) or sorted(GENERATORS))
                raise ValueError(f"types: there is no {name!r}; give one of {close}")
        if REAL not in self.types or len(set(self.types)) < len(self.types):
            raise ValueError(
                f"types: {list(self.types)}; give each once, {REAL!r} among them, which the others "
                "are held against"
            )
        for name in ("step", "plateau_threshold", "ms_floor"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name}: {value} is not positive; give null for the default")

    @torch.no_grad()
    def run(self, subject: Subject) -> Result:
        """See Evaluation.run: rows of the way toward targets, of plateaus, and of the audit."""
        site, sae = self._sae(subject)
        read = self.read or [s for s in subject.model.sites() if ".hook_resid_" in s][-1]
        place = Place(write=site, position=-1)
        place.check(subject.model, self.prompt_size, [read])
        prompts = Prompts.of(
            subject,
            context_size=self.prompt_size,
            n_hosts=self.n_prompts,
            n_others=self.n_pool_prompts,
            drop_first_position=True,
            drop_special_tokens=False,
        )
        bench = Bench.of(subject, prompts, place, sae)
        step = self.step or 1.2 * bench.median_distance() / self.n_steps
        maker = Maker(bench, self.types, self.n_steps, step, read, subject.seed)
        toward, plateau = self._curves(subject, prompts.hosts, place, maker)
        threshold = self.plateau_threshold or 0.1 * bench.median_read_norm(read)
        steps = self._steps(toward)
        lengths = {
            name: plateau_length(values["l2"][..., 0], threshold).double()
            for name, values in plateau.items()
        }
        audit = bench.audit(self.types, subject.seed)
        rows = [
            *self._toward_rows(steps, subject.seed),
            *_plateau_rows(lengths, subject.seed),
            *({"kind": "audit", "type": name, **means} for name, means in audit.items()),
        ]
        arrays = {
            **_flat("toward", toward),
            **{f"plateau/{name}": values["l2"][..., 0] for name, values in plateau.items()},
            **{f"steps/{name}/{what}": v for name, own in steps.items() for what, v in own.items()},
            **{f"steps/{name}/ap": values for name, values in lengths.items()},
            **self._matrices(steps, lengths),
        }
        scalars = {
            "n_prompts": len(prompts.hosts),
            "step": step,
            "plateau_threshold": threshold,
            "median_norm": bench.pool.median_norm,
            "n_alive": len(bench.vocabulary.living),
        }
        return Result(self.word, scalars, tuple(rows), arrays, self.provenance(subject))

    def _curves(
        self, subject: Subject, tokens: Tensor, place: Place, maker: Maker
    ) -> tuple[Curves, Curves]:
        """On the way toward targets, and away from activations."""
        with Kept.of(self, subject) as kept:
            found = [
                respond(
                    subject.model,
                    tokens,
                    place,
                    probes,
                    memory_mb=self.memory_mb,
                    kept=kept.part(name),
                )
                for name, probes in (("toward", maker.toward), ("plateau", maker.plateau))
            ]
        return found[0], found[1]

    def _sae(self, subject: Subject) -> tuple[Site, SAE]:
        """The SAE, and where it belongs."""
        subject.check_saes()
        sites = [site for site in subject.model.sites() if site in subject.saes]
        site = self.site or sites[min(1, len(sites) - 1)]
        if site not in subject.saes:
            raise ValueError(f"site: no SAE at {site!r}; there are ones at {', '.join(sites)}")
        sae = subject.saes[site]
        if sae.is_transcoder:
            raise ValueError(
                f"saes: the one at {site!r} is a transcoder, which makes no activations"
            )
        return site, sae

    def _steps(self, toward: Curves) -> dict[str, dict[str, Tensor]]:
        """Type -> response/what -> the step of every prompt."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, responses in toward.items():
            found[name] = {}
            for response, values in responses.items():
                curves = values[..., 0].double()
                final = toward[REAL][response][:, -1].median().item()
                floor = self.ms_floor or FLOOR * final
                found[name] |= {
                    f"{response}/ms": max_slope_step(curves, floor).double(),
                    f"{response}/nl": departure_step(curves).double(),
                    f"{response}/auc": auc_step(curves).double(),
                }
        return found

    def _toward_rows(
        self, steps: Mapping[str, Mapping[str, Tensor]], seed: int
    ) -> Iterator[dict[str, Any]]:
        for name, own in steps.items():
            for response in dict.fromkeys(key.split("/")[0] for key in own):
                of = {what: own[f"{response}/{what}"] for what in ("ms", "nl", "auc")}
                real = {what: steps[REAL][f"{response}/{what}"] for what in of}
                yield {
                    "kind": "toward",
                    "type": name,
                    "response": response,
                    **_summary(of, real, seed),
                }

    def _matrices(
        self, steps: Mapping[str, Mapping[str, Tensor]], lengths: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        found = {
            f"ks/{what}": ks_matrix({name: own[what] for name, own in steps.items()})
            for what in steps[REAL]
        }
        return {**found, "ks/ap": ks_matrix(lengths)}

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """See Evaluation.plot: `curves`, `steps`, `plateaus`, `audit`."""
        from sae_kit.viz import synthetic

        return synthetic.figures(result)


def _plateau_rows(lengths: Mapping[str, Tensor], seed: int) -> Iterator[dict[str, Any]]:
    for name, own in lengths.items():
        summary = _summary({"ap": own}, {"ap": lengths[REAL]}, seed)
        yield {"kind": "plateau", "type": name, **summary}


def _summary(own: Steps, real: Steps, seed: int) -> dict[str, float]:
    """Mean, deviation, interval, and distance to those of real activations."""
    row: dict[str, float] = {}
    for what, values in own.items():
        interval = bootstrap_interval(values, seed=seed)
        row |= {
            what: interval.estimate,
            f"{what}_low": interval.low,
            f"{what}_high": interval.high,
            f"{what}_sd": values.std(correction=0).item(),
            f"{what}_ks": ks_distance(values, real[what]),
        }
    return row


def _flat(prefix: str, curves: Curves) -> dict[str, Tensor]:
    return {
        f"{prefix}/{name}/{response}": values[..., 0]
        for name, responses in curves.items()
        for response, values in responses.items()
    }
