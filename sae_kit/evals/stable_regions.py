"""stable_regions: does the output change gradually between two activations, or at a border?

The activation at a prompt's last position is moved to that of another prompt, A + alpha (B - A), in
the context of the first. With d the distance of the last residual stream from its clean value,
r(alpha) = d(alpha) / d(1) is a diagonal where the output follows the activation, and flat - steep -
flat where there are stable regions with a border between them.

- pairs of sampled prompts: on the straight line, and on an arc about the mean activation; at
  several sites of the subject's model, and at one of other models (`model_variants.py`)
- pairs of sampled prompts that end in the same token
- pairs of hand-made prompts (`prompt_pairs.py`), of similar and of dissimilar endings
- planes through three activations, in the context of each: pictures of the regions

Rows of kind "curves" (one for each model, site, pairs and path): n_pairs; n_dropped, pairs whose
d(1) is at most `least_distance`; medians of the measures that `region_rows.py` defines, with 95 %
bootstrap intervals over pairs (*_low, *_high); quartiles of the slope; missed_slope, the share of
the median slope that the grid misses if the rise is logistic. Rows of kind "pair" hold each
hand-made pair's measures, and whether its prompts' top predictions differ; rows of kind "slice" say
which planes there are.

Arrays: curves/<n>/<measure>, of the row whose `number` is n; pair/<n>/r, kl and, where the top
predictions differ, logits: their logit difference, scaled to run from 1 to 0; slice/<n>/distances,
[context beta alpha], where alpha and beta run from -margin to 1 + margin.

Source: Janiak et al. 2024, "Characterizing stable regions in the residual stream of LLMs"
(2409.17113) and its code. Departures are listed in docs/stable_regions.md.

Limits: slopes are finite differences, n_alphas - 1 at most (max_slope_cap). d(1) is the distance to
what B's activation does in A's context, not to B's own output. Medians hide how pairs differ: the
arrays have every pair.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor

from sae_kit.config import check_counts
from sae_kit.data.cache_manifest import weights_hash
from sae_kit.evals.base import Evaluation, Subject
from sae_kit.evals.perturb.hosts import Place
from sae_kit.evals.perturb.paths import Arc, Segment
from sae_kit.evals.regions.prompt_pairs import PromptPair, read_pairs
from sae_kit.evals.regions.region_bench import MARGIN, Along, Bench, Way
from sae_kit.evals.regions.region_rows import Measured, from_1_to_0
from sae_kit.evals.regions.sampled_pairs import Pairs, Sample
from sae_kit.evals.shared.kept import Kept, Part
from sae_kit.evals.shared.model_variants import Variant, variants
from sae_kit.models.gpt2 import GPT2, declare_sites
from sae_kit.models.hooks import Site, check_sites, match_sites
from sae_kit.result import Result

if TYPE_CHECKING:
    import matplotlib.figure

LINE: Literal["line"] = "line"
ARC: Literal["arc"] = "arc"
SAMPLED, SAME_ENDING = "sampled", "same ending"

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class StableRegions(Evaluation, name="stable_regions"):
    """Borders between activations, over sites and models; pictures of regions."""

    site: str = "blocks.1.hook_resid_pre"
    """Where activations are replaced: after the first block, as in the paper."""
    sites: str | tuple[str, ...] = "blocks.*.hook_resid_pre"
    """Where they are replaced besides, in the subject's model alone."""
    read: str | None = None
    """Where distances are measured; None: each model's last residual-stream site."""
    n_pairs: int = 100
    """Of sampled prompts."""
    prompt_size: int = 10
    """Tokens in a prompt, BOS included where the text has one."""
    n_alphas: int = 50
    """Points from one activation to the other."""
    paths: tuple[Literal["line", "arc"], ...] = (LINE, ARC)
    """From one activation to the other; the straight line is among them."""
    least_distance: float = 0.01
    """Pairs whose outputs are no farther apart than this are left out."""
    models: tuple[str, ...] = ("random", "shuffled")
    """To compare with: see model_variants.py."""
    pairs: str | None = None
    """A file of hand-made pairs; None: the shipped one."""
    n_slices: int = 2
    """Planes through three sampled activations, in every model."""
    slice_size: int = 31
    """Points along each side of a plane."""
    memory_mb: int = 1024
    """What the perturbed runs take, in MiB."""

    def __post_init__(self) -> None:
        check_counts(self, "n_pairs", "memory_mb")
        if self.prompt_size < 2:
            raise ValueError(f"prompt_size: {self.prompt_size}; give 2 tokens or more")
        if self.n_alphas < 3:
            raise ValueError(f"n_alphas: {self.n_alphas} points show no border; give 3 or more")
        if LINE not in self.paths or len(set(self.paths)) < len(self.paths):
            raise ValueError(f"paths: {list(self.paths)}; give line, or line and arc")
        if self.least_distance < 0:
            raise ValueError(f"least_distance: {self.least_distance} is negative; give 0 or more")
        if self.n_slices < 0 or self.slice_size < 2:
            raise ValueError(
                f"n_slices: {self.n_slices} planes of slice_size={self.slice_size} points; give 0 "
                "or more planes, of 2 points or more"
            )

    @torch.no_grad()
    def run(self, subject: Subject) -> Result:
        """See Evaluation.run: rows of curves by site and model, of hand-made pairs, of planes."""
        # Everything that can be refused comes before everything that takes time.
        model = subject.model
        sites = [s for s in match_sites(self.sites, model.sites()) if s != self.site]
        others = variants(subject, self.models)
        by_hand = read_pairs(self.pairs, subject.language_model.tokenizer)
        self._check(subject, sites, others)
        sample = Sample.of(
            subject, n_pairs=self.n_pairs, n_planes=self.n_slices, prompt_size=self.prompt_size
        )
        own = Variant.own(subject)
        with Kept.of(self, subject) as kept:
            found = Findings(self, sample, kept, seed=subject.seed)
            for site in (self.site, *sites):
                found.add_sampled(own, self._bench(model, site))
            bench = self._bench(model, self.site)
            found.add_same_ending(own, bench)
            found.add_by_hand(bench, subject, by_hand)
            found.add_slices(own, bench)
            for other in others:
                bench = self._bench(other.load(), self.site)
                found.add_sampled(other, bench)
                found.add_slices(other, bench)
        first = found.rows[0]
        return Result(
            name=self.word,
            scalars={
                "max_slope": first["max_slope"],
                "max_slope_cap": self.n_alphas - 1,
                "n_pairs": first["n_pairs"],
            },
            rows=tuple(found.rows),
            arrays=found.arrays,
            provenance=self.provenance(subject),
        )

    def _bench(self, model: GPT2, site: Site) -> Bench:
        return Bench(model, site, self._read(model.sites()), memory_mb=self.memory_mb)

    def _read(self, sites: Sequence[Site] | Mapping[Site, Any]) -> Site:
        """Where distances are measured in a model that has these sites."""
        return self.read or [site for site in sites if ".hook_resid_" in site][-1]

    def _check(self, subject: Subject, sites: Sequence[Site], others: Sequence[Variant]) -> None:
        """Refuse sites that a model lacks, and prompts that are too long for one."""
        model = subject.model
        for site in (self.site, *sites):
            place = Place(write=site, position=-1)
            place.check(model, self.prompt_size, [self._read(model.sites())])
        for other in others:
            known = declare_sites(other.config.n_layer)
            check_sites([self.site, self._read(known)], known, f"models ({other.label})")
            if self.prompt_size > other.config.n_ctx:
                raise ValueError(
                    f"models: {other.label} has contexts of {other.config.n_ctx} tokens, and "
                    f"prompt_size is {self.prompt_size}; give shorter prompts"
                )

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """See Evaluation.plot, and viz/regions.py."""
        from sae_kit.viz.regions import figures

        return figures(result)


@final
class Findings:
    """The rows and arrays found so far.

    Args:
        settings: what is asked for.
        sample: what was drawn from the text.
        kept: where finished parts are kept.
        seed: of the intervals.
    """

    def __init__(self, settings: StableRegions, sample: Sample, kept: Kept, *, seed: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self.arrays: dict[str, Tensor] = {}
        self._settings, self._sample, self._kept, self._seed = settings, sample, kept, seed
        self._alphas = torch.linspace(0, 1, settings.n_alphas)
        self._digests: dict[str, str] = {}

    def add_sampled(self, variant: Variant, bench: Bench) -> None:
        """The sampled pairs, on all paths."""
        centre = bench.last_activations(self._sample.prompts).mean(0)
        known: dict[str, Way] = {LINE: Segment, ARC: partial(Arc, centre=centre)}
        ways: dict[str, Way] = {name: known[name] for name in self._settings.paths}
        pairs = self._sample.neighbours
        found = bench.along(pairs, ways, self._alphas, self._part("sampled", variant, bench))
        for path, along in found.items():
            if not self._add_curves(variant, bench, SAMPLED, path, pairs, along):
                raise ValueError(
                    f"least_distance: no pair of {variant.label} at {bench.place.write} ends "
                    f"farther away than {self._settings.least_distance}; give a smaller one, or a "
                    "later site to read"
                )

    def add_same_ending(self, variant: Variant, bench: Bench) -> None:
        """The pairs of equal last tokens, on the straight line."""
        pairs = self._sample.same_ending
        if len(pairs.a) == 0:
            log.warning("no two of the prompts end in the same token")
            return
        part = self._part("same_ending", variant, bench)
        along = bench.along(pairs, {LINE: Segment}, self._alphas, part)[LINE]
        if not self._add_curves(variant, bench, SAME_ENDING, LINE, pairs, along):
            log.warning("all pairs of the same last token end where they begin")

    def add_by_hand(self, bench: Bench, subject: Subject, pairs: Sequence[PromptPair]) -> None:
        """The hand-made pairs, those of one length together."""
        tokenizer, bos = subject.language_model.tokenizer, subject.tokens.prepend_bos
        tokens = [torch.tensor(pair.tokens(tokenizer, bos=bos)) for pair in pairs]
        for size in sorted({one.shape[1] for one in tokens}):
            numbers = [i for i, one in enumerate(tokens) if one.shape[1] == size]
            a, b = torch.stack([tokens[i] for i in numbers], 1)
            along = bench.endings(Pairs(a, b), self._alphas)
            measured = self._measured(along)
            for place, which in enumerate(measured.kept.tolist()):
                i, logits = numbers[which], along["logit_difference"][which]
                differ = bool(logits[0] != logits[-1])
                about = {"pair": pairs[i].label, "likeness": pairs[i].kind, "tops_differ": differ}
                self.rows.append(
                    {"kind": "pair", "number": i, **about, **measured.single(place)},
                )
                self.arrays |= {
                    f"pair/{i}/r": measured.r[place].float(),
                    f"pair/{i}/kl": measured.kl[place],
                }
                if differ:
                    self.arrays[f"pair/{i}/logits"] = from_1_to_0(logits)
            if measured.n_dropped:
                log.warning("%d hand-made pairs end where they begin", measured.n_dropped)

    def add_slices(self, variant: Variant, bench: Bench) -> None:
        """The planes."""
        for i, triple in enumerate(self._sample.triples):
            part = self._part(f"slice_{i}", variant, bench)
            found = bench.slice(triple, self._settings.slice_size, part)
            number = sum(row["kind"] == "slice" for row in self.rows)
            about = {"model": variant.label, "site": bench.place.write, "plane": i}
            place = {"t": found.t, "margin": MARGIN}
            self.rows.append({"kind": "slice", "number": number, **about, **place})
            self.arrays[f"slice/{number}/distances"] = found.distances

    def _add_curves(
        self, variant: Variant, bench: Bench, kind: str, path: str, pairs: Pairs, along: Along
    ) -> bool:
        """Whether there was anything to add."""
        measured = self._measured(along)
        if len(measured.kept) == 0:
            return False
        number = sum(row["kind"] == "curves" for row in self.rows)
        n_parameters = sum(p.numel() for p in bench.model.parameters())
        self.rows.append(
            {
                "kind": "curves",
                "number": number,
                "model": variant.label,
                "run": variant.run,
                "n_tokens": variant.n_tokens,
                "n_parameters": n_parameters,
                "site": bench.place.write,
                "pairs": kind,
                "path": path,
                **measured.row(seed=self._seed),
            }
        )
        same = {"same_ending": pairs.same_ending.cpu()[measured.kept]}
        arrays = {**measured.arrays(), **same}
        self.arrays |= {f"curves/{number}/{name}": array for name, array in arrays.items()}
        return True

    def _measured(self, along: Along) -> Measured:
        return Measured.of(along, self._alphas, least_distance=self._settings.least_distance)

    def _part(self, what: str, variant: Variant, bench: Bench) -> Part:
        """Told apart by weights, not by the words that a model was named by."""
        if variant.label not in self._digests:
            self._digests[variant.label] = weights_hash(bench.model)[:16]
        return self._kept.part(f"{what}_{bench.place.write}_{self._digests[variant.label]}")
