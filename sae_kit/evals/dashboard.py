"""dashboard: what a person wants to see of a latent, for every latent of every SAE.

One pass over held-out text. Of every latent are kept, while sparse codes stream by:

- the contexts in which it fires most strongly (one window a context), and for each of eight equal
  ranges of strength some random places at which it fires so (`sae_kit.evals.latents.spectrum`);
- how often it fires, its largest and its mean activation, and the histogram of its activations;
- the tokens that its decoder row promotes and suppresses at the output, and the latents of the
  same SAE whose decoder rows are nearest (`sae_kit.evals.latents.readout`).

Prompts of one's own are run as well, and the active latents of each of their tokens kept.

`sae_kit.viz.browser` makes a site of the result, by itself or with one of feature_evolution.

The table has a row for every site: n_alive (latents that fired at all), dead_fraction, l0,
mean_activation (of active latents), median_frequency (of those alive), writes (the site that the
SAE reconstructs), neuronpedia (the SAE's id there, if its file has one).

Memory: every window kept takes 8 bytes and 2 for each of its tokens, and a latent has n_top +
8 n_samples of them. With the defaults that is 43 MB for 24,576 latents, histograms included, and as
much again in the result. No matrix of rows by latents outlives its chunk of 2,048 rows, and sparse
architectures make none.

Limits: activations above 65,504 are kept as that in windows. Logit effects take the direct path
only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.config import check_counts
from sae_kit.data.activations import LiveConfig, Passes
from sae_kit.evals.base import SAE_ROWS, Evaluation, Subject
from sae_kit.evals.latents.best import Best
from sae_kit.evals.latents.firings import Firings
from sae_kit.evals.latents.readout import logit_effects, nearest_directions, to_stream
from sae_kit.evals.latents.spectrum import Spectrum
from sae_kit.log import Progress
from sae_kit.models.hooks import Site
from sae_kit.models.tokenizer import Tokenizer
from sae_kit.result import Result
from sae_kit.sae.base import SAE

if TYPE_CHECKING:
    import matplotlib.figure

MAX_ACTIVE = 64  # latents kept of each token of a prompt, the most active ones
DENSE = 0.1  # a latent that fires at a greater share of the positions is called dense


@final
@dataclass(frozen=True, kw_only=True)
class Dashboard(Evaluation, name="dashboard"):
    """Contexts, histograms, logit effects and neighbours of every latent."""

    n_tokens: int = 524_288
    """Held-out tokens that are read."""
    contexts_per_pass: int = 16
    """Contexts in one model pass."""
    n_top: int = 10
    """Contexts kept of each latent for firing most strongly."""
    n_samples: int = 2
    """Random places kept of each of the eight ranges of a latent's activation."""
    n_before: int = 16
    """Tokens shown before the one in question."""
    n_after: int = 8
    """Tokens shown after it."""
    n_logits: int = 10
    """Tokens kept of those that a latent promotes most, and as many that it suppresses."""
    n_neighbours: int = 8
    """Latents of the same SAE kept for their decoder row."""
    prompts: tuple[str, ...] = (
        "When Mary and John went to the store, John gave a drink to",
        "Return the number of items in the list, or None if it is",
    )
    """Texts of one's own, whose active latents are kept token by token."""
    drop_first_position: bool = True
    """Whether position 0 of every context is left out."""
    drop_special_tokens: bool = True
    """Whether end-of-text tokens are left out."""

    browsable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "n_tokens", "contexts_per_pass", "n_top", "n_samples", "n_logits")
        for name in ("n_before", "n_after", "n_neighbours"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative; give 0 or more")
        if "" in self.prompts:
            raise ValueError("prompts: one is empty; leave it out, or give [] for none")

    @torch.no_grad()
    def run(self, subject: Subject) -> Result:
        """See Evaluation.run: one row per site, in the order of the model."""
        subject.check_saes()
        sites = [site for site in subject.model.sites() if site in subject.saes]
        tokenizer = subject.language_model.tokenizer
        reading = LiveConfig(
            drop_first_position=self.drop_first_position,
            drop_special_tokens=self.drop_special_tokens,
        )
        passes = Passes(reading, subject.model, sites, [tokenizer.eot_id])
        prompts = [self._prompt(subject, text) for text in self.prompts]
        contexts = subject.contexts(self.n_tokens)
        if not passes.counting(contexts).any():
            raise ValueError(
                f"tokens: none of the {contexts.numel()} tokens read counts; set eval."
                "drop_first_position and eval.drop_special_tokens to false, or read other text"
            )
        logs = self._read(subject, passes, contexts)
        n_positions = int(passes.counting(contexts).sum())
        return Result(
            name=self.word,
            scalars={
                "n_tokens": contexts.numel(),
                "n_positions": n_positions,
                "n_sites": len(sites),
                "n_latents": sum(subject.saes[site].d_sae for site in sites),
            },
            rows=tuple(
                {**logs[site].row(site, n_positions), **_facts(subject, site)} for site in sites
            ),
            arrays={
                "contexts": contexts.int(),
                **_vocabulary(tokenizer),
                **{key: x for site in sites for key, x in logs[site].arrays(site).items()},
                **{key: x for site in sites for key, x in self._readout(subject, site).items()},
                **{
                    key: x
                    for i, tokens in enumerate(prompts)
                    for key, x in _prompt_arrays(f"prompt/{i}", tokens, passes, subject.saes)
                },
            },
            provenance=self.provenance(subject),
        )

    def _prompt(self, subject: Subject, text: str) -> Int[Tensor, "one pos"]:
        """The tokens of a prompt, begun as the text's contexts are.

        Raises:
            ValueError: it is longer than the model's context.
        """
        tokenizer = subject.language_model.tokenizer
        ids = [tokenizer.eot_id] * subject.tokens.prepend_bos + tokenizer.encode(text)
        if len(ids) > subject.model.n_ctx:
            raise ValueError(
                f"prompts: {text[:30]!r}... has {len(ids)} tokens, but the model's context holds "
                f"{subject.model.n_ctx}; shorten it"
            )
        return torch.tensor([ids])

    def _read(
        self, subject: Subject, passes: Passes, contexts: Int[Tensor, "batch pos"]
    ) -> dict[Site, "LatentLog"]:
        """One pass over the text."""
        generator = torch.Generator().manual_seed(subject.seed)
        scores = torch.randperm(contexts.numel(), generator=generator).float()
        logs = {site: LatentLog(self, subject.saes[site].d_sae, scores) for site in passes.sites}
        progress = Progress(contexts.numel())
        for i, tokens in enumerate(contexts.split(self.contexts_per_pass)):
            first = i * self.contexts_per_pass * contexts.shape[1]
            for site, firings in _firings(passes, subject.saes, tokens.to(subject.device), first):
                logs[site].update(firings)
            progress.update(tokens.numel())
        progress.close()
        return logs

    def _readout(self, subject: Subject, site: Site) -> dict[str, Tensor]:
        """What an SAE's decoder alone says."""
        sae = subject.saes[site]
        arrays: dict[str, Tensor] = {}
        rows = sae.W_dec.detach().float()
        if n := min(self.n_neighbours, sae.d_sae - 1):
            index, cosine = nearest_directions(rows, n)
            arrays |= {f"decoder_index/{site}": index.int(), f"decoder_cosine/{site}": cosine}
        written = to_stream(subject.model, subject.writes[site], rows)
        if written is not None:
            n_tokens = subject.language_model.tokenizer.vocab_size
            n = min(self.n_logits, n_tokens)
            effects = logit_effects(subject.model, written, n=n, n_tokens=n_tokens)
            for name in ("promoted", "suppressed"):
                arrays[f"logits_{name}/{site}"] = getattr(effects, name).int()
                arrays[f"logits_{name}_by/{site}"] = getattr(effects, f"{name}_by")
        return arrays

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """See Evaluation.plot: `frequency`, how often latents fire."""
        from sae_kit.viz import plots

        n = result.scalars["n_positions"]
        frequencies = {
            row["site"]: result.arrays[f"n_active/{row['site']}"].double() / n
            for row in result.rows
        }
        model = result.provenance["subject"]["model"]
        title = f"How often latents fire ({n:,} positions): SAEs in {model}, on held-out text"
        return {"frequency": plots.firing_frequencies(frequencies, dense=DENSE, title=title)}


@final
class LatentLog:
    """What is kept of the latents of one SAE."""

    def __init__(self, config: Dashboard, d_sae: int, scores: Float[Tensor, " places"]) -> None:
        window = {"n_before": config.n_before, "n_after": config.n_after}
        self.top = Best(d_sae, config.n_top, **window)
        self.spectrum = Spectrum(d_sae, scores, n_samples=config.n_samples, **window)

    def update(self, firings: Firings) -> None:
        """Take in the firings at the next places of the text."""
        peaks = firings.peaks()
        self.top.update(firings.latent[peaks], firings.value[peaks], peaks, firings)
        self.spectrum.update(firings)

    def row(self, site: Site, n_positions: int) -> dict[str, Any]:
        """The site's row of the table; see the module's docstring."""
        n_active = self.spectrum.counts.sum(1)
        n_firings = int(n_active.sum())
        alive = n_active[n_active > 0].double()
        return {
            "site": site,
            "d_sae": len(n_active),
            "n_alive": len(alive),
            "dead_fraction": 1 - len(alive) / len(n_active),
            "l0": n_firings / n_positions,
            "mean_activation": self.spectrum.sum.sum().item() / max(1, n_firings),
            "median_frequency": alive.median().item() / n_positions if len(alive) else 0.0,
        }

    def arrays(self, site: Site) -> dict[str, Tensor]:
        """By the names under which the result keeps them."""
        spectrum, d_sae = self.spectrum, len(self.spectrum.counts)
        n_active = spectrum.counts.sum(1)
        kept = {"top": self.top, "sample": spectrum.samples}
        return {
            f"n_active/{site}": n_active,
            f"max/{site}": spectrum.largest,
            f"mean/{site}": (spectrum.sum / n_active.clamp_min(1)).float(),
            f"histogram/{site}": spectrum.counts,
            f"bin_width/{site}": spectrum.widths,
            **{f"{name}_place/{site}": best.place.view(d_sae, -1) for name, best in kept.items()},
            **{
                f"{name}_acts/{site}": best.acts.view(d_sae, -1, best.acts.shape[-1])
                for name, best in kept.items()
            },
        }


def _firings(
    passes: Passes, saes: Mapping[Site, SAE], tokens: Int[Tensor, "batch pos"], first: int
) -> Iterator[tuple[Site, Firings]]:
    """What fires in some contexts, site by site; `first` is the place of their first token."""
    n_pos = tokens.shape[1]
    places = first + passes.counting(tokens).flatten().nonzero().flatten()
    acts, _ = passes.rows(tokens)
    for site in passes.sites:
        chunks = zip(acts[site].split(SAE_ROWS), places.split(SAE_ROWS), strict=True)
        parts = [Firings.of(saes[site].natural_code(x), at, n_pos) for x, at in chunks]
        yield site, Firings.joined(parts)


def _prompt_arrays(
    name: str, tokens: Int[Tensor, "one pos"], passes: Passes, saes: Mapping[Site, SAE]
) -> Iterator[tuple[str, Tensor]]:
    """The tokens of a prompt, and at every site the latents active at each of them.

    `[pos n]`, the most active first; an activation of 0 marks a place that is not in use.
    """
    n_pos = tokens.shape[1]
    yield f"{name}/tokens", tokens[0]
    for site, firings in _firings(passes, saes, tokens.to(passes.model.device), 0):
        at = torch.zeros(n_pos, saes[site].d_sae)
        at[firings.place, firings.latent] = firings.value
        n = max(1, min(MAX_ACTIVE, int((at > 0).sum(1).max())))
        strongest = at.topk(n)
        yield f"{name}/latent/{site}", strongest.indices.int()
        yield f"{name}/activation/{site}", strongest.values


def _facts(subject: Subject, site: Site) -> dict[str, str]:
    """What the SAE's file says of it."""
    known = subject.saes[site].metadata.get("neuronpedia_id")
    return {
        "writes": subject.writes[site],
        "neuronpedia": known if isinstance(known, str) else "",
    }


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The text of every token, in UTF-8: all bytes in a row, and where each token's end."""
    texts = [text.encode() for text in tokenizer.str_tokens(range(tokenizer.vocab_size))]
    ends = torch.tensor([len(text) for text in texts]).cumsum(0)
    return {
        "vocabulary": torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8),
        "vocabulary_ends": ends,
    }
