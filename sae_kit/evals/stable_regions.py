"""stable_regions: does the output change gradually between two activations, or at a border?

The activation at a prompt's last position is moved to that of another prompt, A + alpha (B - A), in
the context of the first. With d the distance of the last residual stream from its clean value,
r(alpha) = d(alpha) / d(1) is a diagonal where the output follows the activation, and flat - steep -
flat where there are stable regions with a border between them. Measured are the largest slope of r,
where it is, and how long r stays below 0.1 and above 0.9.

- between sampled prompts, on the straight line and on an arc about the mean activation, for the
  subject's model at every chosen site, and for other models (`model_variants.py`)
- between hand-made pairs of prompts (`prompt_pairs.py`): similar and dissimilar endings
- on planes through three activations, in each of the three contexts: pictures of the regions

Rows of kind "curves" (one for each model, site and path): n_pairs, n_dropped (d(1) up to
`least_distance`), and medians over pairs of max_slope, location, begin, end (the two plateaus),
gate_flips, with quartiles (`*_q1`, `*_q3`) and 95 % bootstrap intervals of the median (`*_low`,
`*_high`); slope_same and slope_other, medians of pairs whose last tokens are the same or not.
Rows of kind "pair": each hand-made pair's slope, location and plateaus.

gate_flips is the number of neurons of the last MLP whose pre-activation has another sign at B than
at A: the least number of linear regions passed through.

Source: Janiak et al. 2024, "Characterizing stable regions in the residual stream of LLMs"
(2409.17113) and its code. Departures are listed in docs/stable_regions.md.

Limits: slopes are finite differences, at most n_alphas - 1, and measured low where the rise is
steep (`max_slope_cap` in the scalars). d(1) is the distance to what B's activation does in A's
context, not to B's own output.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.config import check_counts
from sae_kit.evals.base import Evaluation, Subject
from sae_kit.evals.curves import max_slope, plateaus, relative
from sae_kit.evals.kept import Kept, Part
from sae_kit.evals.model_variants import Variant, variants
from sae_kit.evals.prompt_pairs import read_pairs
from sae_kit.evals.prompts import Prompts
from sae_kit.evals.region_bench import LINE, Between, Slices, last_activations
from sae_kit.evals.resampling import median_interval
from sae_kit.models.hooks import Site, match_sites
from sae_kit.result import Result

if TYPE_CHECKING:
    import matplotlib.figure

MEASURES = ("max_slope", "location", "begin", "end", "gate_flips")

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class StableRegions(Evaluation, name="stable_regions"):
    """Borders between activations, over sites and models; pictures of regions."""

    site: str = "blocks.1.hook_resid_pre"
    """Where activations are replaced: after the first block, as in the paper."""
    sites: str | tuple[str, ...] = "blocks.*.hook_resid_pre"
    """Where the subject's model is looked at besides; block 0 reads tokens, and is as good."""
    read: str | None = None
    """Where distances are measured; None: the last residual-stream site."""
    n_pairs: int = 100
    """Of sampled prompts."""
    prompt_size: int = 10
    """Tokens in a prompt."""
    n_alphas: int = 50
    """Points from one activation to the other."""
    paths: tuple[Literal["line", "arc"], ...] = ("line", "arc")
    """From one activation to the other; the straight line is among them."""
    least_distance: float = 0.01
    """Pairs whose outputs are no farther apart than this are left out."""
    models: tuple[str, ...] = ("random", "shuffled")
    """To compare with: see model_variants.py."""
    pairs: str | None = None
    """A file of hand-made pairs; None: the shipped one."""
    n_slices: int = 2
    """Planes through three sampled activations."""
    slice_size: int = 41
    """Points along each side of a plane."""
    memory_mb: int = 1024
    """What the perturbed runs take, in MiB."""

    def __post_init__(self) -> None:
        check_counts(self, "n_pairs", "slice_size", "memory_mb")
        if self.prompt_size < 2:
            raise ValueError(f"prompt_size: {self.prompt_size}; give 2 tokens or more")
        if self.n_alphas < 3:
            raise ValueError(f"n_alphas: {self.n_alphas} points show no border; give 3 or more")
        if "line" not in self.paths or len(set(self.paths)) < len(self.paths):
            raise ValueError(f"paths: {list(self.paths)}; give line, or line and arc")
        if self.n_slices < 0 or self.least_distance < 0:
            raise ValueError("n_slices and least_distance must be 0 or more")

    @torch.no_grad()
    def run(self, subject: Subject) -> Result:
        """See Evaluation.run: rows of curves by model, site and path, then of hand-made pairs."""
        read = self.read or [s for s in subject.model.sites() if ".hook_resid_" in s][-1]
        sites = [s for s in match_sites(self.sites, subject.model.sites()) if s != self.site]
        n_prompts = max(self.n_pairs + 1, 3 * self.n_slices)
        prompts = Prompts.of(
            subject,
            context_size=self.prompt_size,
            n_hosts=n_prompts,
            n_others=1,
            drop_first_position=True,
            drop_special_tokens=False,
        ).hosts
        others = list(variants(subject, self.models))
        own = Variant(subject.language_model.name, subject.model)
        asked = [(own, site) for site in (self.site, *sites)]
        asked += [(other, self.site) for other in others]
        found: list[dict[str, Any]] = []
        arrays: dict[str, Tensor] = {"alphas": torch.linspace(0, 1, self.n_alphas)}
        with Kept.of(self, subject) as kept:
            for variant, site in asked:
                part = kept.part(f"{variant.label}/{site}".replace(" ", "_"))
                between = self._between(variant, site, read, prompts, part)
                found += self._curve_rows(variant, site, between, prompts, subject.seed)
                arrays |= self._curve_arrays(f"{variant.label}/{site}", between)
            rows, curves = self._hand_made(subject, read)
            arrays |= curves
            for i in range(self.n_slices):
                three = prompts[3 * i : 3 * i + 3]
                slices = Slices(subject.model, self.site, read, self.slice_size, self.memory_mb)
                arrays |= slices.of(three, kept.part(f"slice_{i}"), f"slice/{i}")
        first = found[0]
        return Result(
            name=self.word,
            scalars={
                "max_slope": first["max_slope"],
                "max_slope_cap": self.n_alphas - 1,
                "n_pairs": first["n_pairs"],
                "n_slices": self.n_slices,
            },
            rows=(*found, *rows),
            arrays=arrays,
            provenance=self.provenance(subject),
        )

    def _between(
        self, variant: Variant, site: Site, read: Site, prompts: Tensor, kept: Part
    ) -> Between:
        """From every sampled prompt to the next."""
        between = Between(
            variant.model, site, read, self.n_alphas, paths=self.paths, memory_mb=self.memory_mb
        )
        tokens = prompts[: self.n_pairs + 1]
        ends = last_activations(variant.model, tokens, site)
        between.measure(tokens[:-1], ends[1:], kept)
        return between

    def _curve_rows(
        self, variant: Variant, site: Site, between: Between, prompts: Tensor, seed: int
    ) -> Iterator[dict[str, Any]]:
        last = prompts[: self.n_pairs + 1, -1]
        same = last[1:] == last[:-1]
        for path, distances in between.distances.items():
            curves, kept = relative(distances.double(), self.least_distance)
            row: dict[str, Any] = {
                "kind": "curves",
                "model": variant.label,
                "site": site,
                "path": path,
                "step": -1 if variant.step is None else variant.step,
                "n_pairs": len(kept),
                "n_dropped": self.n_pairs - len(kept),
            }
            if len(kept) == 0:
                raise ValueError(
                    f"least_distance: no pair of {variant.label} at {site} ends farther away than "
                    f"{self.least_distance}; give a smaller one, or a later site to read"
                )
            measures = {**measured(curves), "gate_flips": between.flips[path][kept, -1].double()}
            for name, values in measures.items():
                row |= _spread(name, values, seed)
            slopes, alike = measures["max_slope"], same[kept.to(same.device)].to(curves.device)
            for name, chosen in (("same", alike), ("other", ~alike)):
                if chosen.any():
                    row[f"slope_{name}"] = slopes[chosen].median().item()
            yield row

    def _curve_arrays(self, name: str, between: Between) -> dict[str, Tensor]:
        arrays: dict[str, Tensor] = {}
        for path, distances in between.distances.items():
            curves, _ = relative(distances.double(), self.least_distance)
            slopes = measured(curves)["max_slope"]
            arrays |= {f"curves/{name}/{path}": curves.float(), f"slopes/{name}/{path}": slopes}
            arrays[f"kl/{name}/{path}"] = between.kl[path]
        return arrays

    def _hand_made(
        self, subject: Subject, read: Site
    ) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """The pairs of the file, one by one, since their lengths differ."""
        rows: list[dict[str, Any]] = []
        arrays: dict[str, Tensor] = {}
        tokenizer, model = subject.language_model.tokenizer, subject.model
        for number, pair in enumerate(read_pairs(self.pairs, tokenizer)):
            tokens = torch.tensor(pair.tokens(tokenizer), device=model.device)
            ends = last_activations(model, tokens, self.site)
            between = Between(
                model, self.site, read, self.n_alphas, paths=(LINE,), memory_mb=self.memory_mb
            )
            between.measure(tokens[:1], ends[1:], Part(None))
            curves, kept = relative(between.distances[LINE].double(), self.least_distance)
            if len(kept) == 0:
                log.warning("left out: %r ends where it begins", pair.label)
                continue
            values = {name: one.item() for name, one in measured(curves).items()}
            flips = int(between.flips[LINE][0, -1])
            about = {"kind": "pair", "pair": pair.label, "likeness": pair.kind}
            rows.append({**about, **values, "gate_flips": flips})
            arrays[f"pair/{number}/r"] = curves[0].float()
            arrays[f"pair/{number}/logits"] = between.logit_difference(tokens[:1], ends)
        return rows, arrays

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """See Evaluation.plot: `curves`, `slopes`, `sites`, `pairs`, `slice_<i>`."""
        from sae_kit.viz import regions

        return regions.figures(result)


def measured(curves: Float[Tensor, "pairs alphas"]) -> Mapping[str, Float[Tensor, " pairs"]]:
    """Of relative distances at equally spaced alphas."""
    alphas = torch.linspace(0, 1, curves.shape[1], dtype=curves.dtype, device=curves.device)
    slope, location = max_slope(curves, alphas)
    begin, end = plateaus(curves, alphas)
    return {"max_slope": slope, "location": location, "begin": begin, "end": end}


def _spread(name: str, values: Float[Tensor, " pairs"], seed: int) -> dict[str, float]:
    """Median with its interval, and quartiles."""
    interval = median_interval(values, seed=seed)
    q1, q3 = values.quantile(torch.tensor([0.25, 0.75], dtype=values.dtype)).tolist()
    return {
        name: interval.estimate,
        f"{name}_low": interval.low,
        f"{name}_high": interval.high,
        f"{name}_q1": q1,
        f"{name}_q3": q3,
    }
