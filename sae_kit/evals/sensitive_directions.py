"""sensitive_directions: how much a model's output changes along random, real and SAE directions.

Activations x of held-out prompts at one site become x + L d / |d|, with one direction d for every
token that is kept for all lengths L, and the model runs on from there. Measured are KL(clean ||
perturbed) of the next-token distributions, in nats, and the distance that the last residual stream
moves. At the sites of SAEs, moreover, x is replaced by SAE(x), and by other points that are as far
from x, token by token: is an SAE's error worse than any error of its size?

Source: Lee and Heimersheim 2024 (2410.12555), with Gurnee 2024 (SAE errors) and Heimersheim and
Mendel 2024 (activation plateaus). What is drawn is defined in `directions.py`, `sae_directions.py`
and `substitutions.py`. Departures from the paper's code are listed in docs/sensitive_directions.md.

Rows of kind "curve" (one for each site, direction and, where it is an SAE's, set of SAEs):

- saes, objective, l0: the set's label, what it was trained for, its mean number of active latents.
- kl_area, l2_area: the area under the curve from length 0 on, lengths in multiples of `unit`.
- kl_area_ratio: kl_area over that of cov_mixture.
- length_at_T, reaches_T: the length at which KL first reaches T nats; where it never does, the
  greatest length, and false.

Rows of kind "substitution" (one for each site, set of SAEs, and substitution):

- epsilon, norm, cosine: means of |SAE(x) - x|, |x|, cos(x, SAE(x)) over the tokens perturbed.
- kl, l2, delta_ce: means over tokens; delta_ce is the increase of the next token's cross-entropy.
- sae_ratio: KL of SAE(x) over KL of this substitution; for those as far from x as SAE(x).

*_low, *_high: 95 % bootstrap intervals over prompts. Ratios are of the same resampled prompts.

Arrays: lengths, in multiples of the unit; curves/<site>/<set>|<direction>/<kl or l2>, [3 lengths],
is the mean with its interval, .../quartiles are those over tokens, and kl_ratio is kl over that of
cov_mixture; NaN where that is 0.

Limits: with position null all tokens are perturbed at once, as in the paper, and a token's KL has
the effects of those before it in it. Mean and covariance are estimated, on other prompts.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from sae_kit.config import check_counts, nearest
from sae_kit.evals.base import Evaluation, Subject
from sae_kit.evals.directions.direction_bench import Bench
from sae_kit.evals.directions.direction_rows import Summary
from sae_kit.evals.directions.directions import DIRECTIONS, Given
from sae_kit.evals.directions.sae_directions import SAE_DIRECTIONS, Dictionary
from sae_kit.evals.directions.substitutions import SUBSTITUTIONS
from sae_kit.evals.perturb.hosts import Hosts
from sae_kit.evals.perturb.paths import Fixed, Ray, check_increasing
from sae_kit.evals.perturb.perturbation import Curves, Probe
from sae_kit.evals.shared.kept import Kept, Part
from sae_kit.evals.shared.prompts import Prompts
from sae_kit.models.hooks import Site, check_sites
from sae_kit.result import Result

if TYPE_CHECKING:
    import matplotlib.figure

BASELINE = "cov_mixture"
"""What areas under curves are compared with."""
AS_FAR = (
    "norm_corrected",
    "isotropic",
    "cov_mixture",
    "real_mixture",
    "theta_to_sae",
    "theta_to_x",
)
"""Substitutions that the harm of SAE(x) is compared with."""

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class SensitiveDirections(Evaluation, name="sensitive_directions"):
    """Curves of KL and distance along directions, and what an SAE's error does."""

    compares: ClassVar[bool] = True

    directions: tuple[str, ...] = (
        "isotropic",
        "isotropic_difference",
        "cov_difference",
        "cov_mixture",
        "real_difference",
        "real_mixture",
        "sae_error",
        "alive_decoder",
        "active_decoder",
        "dead_decoder",
    )
    """Of the curves: see directions.py and sae_directions.py."""
    substitutions: tuple[str, ...] = tuple(SUBSTITUTIONS)
    """In the place of activations, at every site that has an SAE: see substitutions.py."""
    sites: tuple[str, ...] | None = None
    """Where curves begin; None: the middle one of the SAEs' sites."""
    read: str | None = None
    """Where distances are measured; None: the last residual-stream site."""
    position: int | None = None
    """The one position that is perturbed (-1: the last); None: all at once, as in the paper."""
    lengths: tuple[float, ...] = (0.02, 0.03, 0.05, 0.08, 0.12, 0.18, 0.27, 0.4, 0.6, 0.9, 1.3, 2.0)
    """Of the perturbations, in multiples of `unit`."""
    unit: float | None = None
    """In units of the activation; None: the median norm at the site."""
    thresholds: tuple[float, ...] = (0.1, 1.0)
    """KL, in nats, of which it is found out at what length a curve reaches it."""
    context_size: int = 32
    """Tokens in a prompt, BOS included."""
    n_prompts: int = 64
    """To be perturbed."""
    n_pool_prompts: int = 256
    """Others, for mean, covariance and real activations; their positions outnumber the channels."""
    n_pool_rows: int = 4096
    """Real activations kept to draw from, at most."""
    drop_first_position: bool = True
    """Whether position 0 is neither perturbed nor measured, nor in the moments."""
    drop_special_tokens: bool = True
    """Whether that holds for end-of-text tokens."""
    memory_mb: int = 1024
    """What the perturbed runs take, in MiB."""

    def __post_init__(self) -> None:
        check_counts(self, "context_size", "n_prompts", "n_pool_prompts", "memory_mb")
        if self.n_pool_rows < 2:
            raise ValueError(f"n_pool_rows: {self.n_pool_rows} has no two activations; give more")
        _check_names("directions", self.directions, [*DIRECTIONS, *SAE_DIRECTIONS])
        _check_names("substitutions", self.substitutions, SUBSTITUTIONS)
        if not self.directions and not self.substitutions:
            raise ValueError("directions: none, and no substitutions; give some of either")
        check_increasing(torch.tensor(self.lengths), "lengths")
        if self.lengths[0] < 0:
            raise ValueError(f"lengths: {self.lengths[0]} is negative; begin at 0 or above")
        if min(self.thresholds, default=1.0) <= 0:
            raise ValueError(f"thresholds: {list(self.thresholds)}; give positive numbers of nats")
        if self.unit is not None and self.unit <= 0:
            raise ValueError(f"unit: {self.unit} is not positive; give null for the median norm")

    @torch.no_grad()
    def run(self, subject: Subject) -> Result:
        """See Evaluation.run: rows of curves by site, then of substitutions."""
        with_saes, curve_sites = self._sites(subject)
        prompts = Prompts.of(
            subject,
            context_size=self.context_size,
            n_hosts=self.n_prompts,
            n_others=self.n_pool_prompts,
            drop_first_position=self.drop_first_position,
            drop_special_tokens=self.drop_special_tokens,
        )
        order = list(subject.model.sites())
        bench = Bench(
            subject,
            prompts,
            sorted({*with_saes, *curve_sites}, key=order.index),
            position=self.position,
            read=self.read or [site for site in order if ".hook_resid_" in site][-1],
            n_pool_rows=self.n_pool_rows,
            memory_mb=self.memory_mb,
        )
        summary = Summary(bench.counts, seed=subject.seed)
        rows: list[dict[str, Any]] = []
        arrays = {"lengths": torch.tensor(self.lengths)}
        with Kept.of(self, subject) as kept:
            for site in curve_sites:
                curves = self._curves(bench, site, kept.part(f"curves/{site}"))
                rows += self._curve_rows(bench, site, summary, curves)
                for name, values in curves.items():
                    drawn = summary.drawn(values, _baseline(curves))
                    arrays |= {f"curves/{site}/{name}/{key}": each for key, each in drawn.items()}
            for site in with_saes:
                found = self._replaced(bench, site, kept.part(f"substitutions/{site}"))
                rows += self._substitution_rows(bench, site, summary, found)
        return Result(
            name=self.word,
            scalars={
                "n_prompts": self.n_prompts,
                "n_positions": int(bench.counts.sum()),
                **{f"unit/{site}": self._unit(bench, site) for site in curve_sites},
            },
            rows=tuple(rows),
            arrays=arrays,
            provenance=self.provenance(subject),
        )

    def _sites(self, subject: Subject) -> tuple[list[Site], list[Site]]:
        """The sites of SAEs, and those of curves, in the model's order."""
        known = subject.model.sites()
        saes = [(site, sae) for one in subject.sets for site, sae in one.saes.items()]
        if saes or not self.directions or set(self.directions) & set(SAE_DIRECTIONS):
            subject.check_saes()
        for site, sae in saes:
            if sae.is_transcoder:
                raise ValueError(
                    f"saes: the one at {site!r} is a transcoder, whose output is no "
                    "reconstruction of what it reads; choose others with layers"
                )
        with_saes = [site for site in known if site in dict(saes)]
        middle = with_saes or [site for site in known if site.endswith(".hook_resid_pre")]
        sites = [middle[len(middle) // 2]] if self.sites is None else self.sites
        check_sites(sites, known, "sites")
        curve_sites = [site for site in known if site in sites]
        return (
            with_saes if self.substitutions else [],
            curve_sites if self.directions else [],
        )

    def _unit(self, bench: Bench, site: Site) -> float:
        """The length of 1, in units of the activation."""
        return bench.pools[site].median_norm if self.unit is None else self.unit

    def _curves(self, bench: Bench, site: Site, kept: Part) -> Curves:
        """The responses to every direction, by set|direction."""
        lengths = torch.tensor(self.lengths) * self._unit(bench, site)
        plain = [name for name in self.directions if name in DIRECTIONS]
        of_saes = self._possible(bench.dictionaries[site], site)

        def probes(hosts: Hosts, given: Given) -> dict[str, Probe]:
            drawn = {f"|{name}": DIRECTIONS[name].of(given) for name in plain}
            for label, name in of_saes:
                dictionary = bench.dictionaries[site][label]
                drawn[f"{label}|{name}"] = SAE_DIRECTIONS[name].of(given, dictionary)
            # A direction of zero leaves the positions that do not count where they are.
            mask = bench.mask(given)
            return {
                name: Probe(Ray(given.base, direction * mask, lengths), bench.responses())
                for name, direction in drawn.items()
            }

        return bench.respond(site, probes, kept)

    def _possible(
        self, dictionaries: Mapping[str, Dictionary], site: Site
    ) -> list[tuple[str, str]]:
        """Labels and names of the SAE directions that all prompts have; the others are told of."""
        found = []
        for label, dictionary in dictionaries.items():
            for name in self.directions:
                if name in SAE_DIRECTIONS:
                    if SAE_DIRECTIONS[name].is_possible(dictionary):
                        found.append((label, name))
                    else:
                        log.warning("%s %s: %s left out: no such latents", label, site, name)
        return found

    def _replaced(self, bench: Bench, site: Site, kept: Part) -> Curves:
        """The responses of every set, a point for each substitution."""

        def probes(hosts: Hosts, given: Given) -> dict[str, Probe]:
            responses = (*bench.responses(), *bench.losses(hosts))
            mask, found = bench.mask(given), {}
            for label, dictionary in bench.dictionaries[site].items():
                recon = dictionary.reconstruct(given.base)
                put = [SUBSTITUTIONS[name].of(given, recon) for name in self.substitutions]
                put = [x.where(mask, given.base) for x in put]
                found[label] = Probe(Fixed(torch.stack(put, 1)), responses)
            return found

        return bench.respond(site, probes, kept)

    def _curve_rows(
        self, bench: Bench, site: Site, summary: Summary, curves: Curves
    ) -> Iterator[dict[str, Any]]:
        lengths = torch.tensor(self.lengths, dtype=torch.float64)
        for key, values in curves.items():
            label, name = key.rsplit("|", 1)
            of_sae = (
                bench.about(site, label)
                if name in SAE_DIRECTIONS
                else {"saes": "", "objective": ""}
            )
            yield {
                "kind": "curve",
                "site": site,
                **of_sae,
                "name": name,
                **summary.curve(values, _baseline(curves), lengths, self.thresholds),
            }

    def _substitution_rows(
        self, bench: Bench, site: Site, summary: Summary, found: Curves
    ) -> Iterator[dict[str, Any]]:
        for label, values in found.items():
            means = bench.dictionaries[site][label].means()
            by_name = {
                name: {response: value[:, i, None] for response, value in values.items()}
                for i, name in enumerate(self.substitutions)
            }
            of_sae = by_name.get("sae", {}).get("kl")
            for name, own in by_name.items():
                yield {
                    "kind": "substitution",
                    "site": site,
                    **bench.about(site, label),
                    "name": name,
                    **{measure: means[measure] for measure in ("epsilon", "norm", "cosine")},
                    **summary.substitution(own, of_sae if name in AS_FAR else None),
                }

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """See Evaluation.plot, and viz/direction_figures.py."""
        from sae_kit.viz.direction_figures import figures

        return figures(result)


def _baseline(curves: Curves) -> Tensor | None:
    """The KLs of what others are compared with, if it was measured."""
    return curves.get(f"|{BASELINE}", {}).get("kl")


def _check_names(field: str, names: Sequence[str], known: Collection[str]) -> None:
    """Refuse names that nothing has, and ones that come twice."""
    for name in names:
        if name not in known:
            close = ", ".join(nearest(name, known) or sorted(known))
            raise ValueError(f"{field}: there is no {name!r}; give one of {close}")
    if len(set(names)) < len(names):
        raise ValueError(f"{field}: {list(names)} has one twice; give each once")
