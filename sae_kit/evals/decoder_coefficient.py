"""decoder_coefficient: how degenerate is the loss of an SAE around its decoder?

The local learning coefficient of the decoder weights of every SAE, with codes as they are, on
held-out text. The loss is quadratic (`decoder_loss.py`), so what chains should come to is known,
and every row holds both: what was sampled, and what was to be found. Twice the coefficient is an
effective number of parameters, of d_sae times the width.

Rows, by site: site, n_latents, n_fired (those that fire; the others are free), n_parameters;
limit, the coefficient without a pull and of endlessly much data, which is half the rank; known, the
coefficient that chains at this pull and step come to, and its two parts, curvature (at least 0) and
fall (at most 0: what another decoder would reconstruct better); coefficient, sampled, with its 95 %
interval over chains (Student's t), its verdict (`verdicts.py`), r_hat and rise; sigma, the root
mean square of the error; step.

Arrays: spectrum/<site>, the curvatures (eigenvalues of the codes' Gram matrix), each of as many
directions as the width; trace/<site>, `[chains steps]`, the loss less that at the SAE, burn-in
included.

Scalars: mean_share, the mean over sites of twice the curvature over n_parameters; n_beta, cut_off
(gamma / n beta) and n_data, of rows.

Decoder rows are measured in units of the SAE's error when their latent is at its root mean square,
losses in nats per token, so that one pull serves all sites.

Source: Lau et al. 2023 (2308.12108); Bushnaq et al. 2024 (2405.10927), section 2. That of a decoder
is this toolkit's.

Limits: an SAE trained on other rows, or not to the end, is no minimum of the reconstruction error:
its fall outweighs the curvature, and the sum is negative. loss=behaviour leaves the curvature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_kit.config import check_counts
from sae_kit.data.activations import LiveConfig, Passes
from sae_kit.evals.base import Evaluation, Subject
from sae_kit.evals.loss_landscape.curvature import effective_parameters
from sae_kit.evals.loss_landscape.decoder_loss import DecoderLoss, Kind
from sae_kit.evals.loss_landscape.sgld import Sampler, estimate, n_beta_of, sample
from sae_kit.evals.loss_landscape.verdicts import Chains, check_chains
from sae_kit.evals.shared.draws import generator_of
from sae_kit.log import Progress
from sae_kit.models.hooks import Site
from sae_kit.result import Result

if TYPE_CHECKING:
    import matplotlib.figure


@final
@dataclass(frozen=True, kw_only=True)
class DecoderCoefficient(Evaluation, name="decoder_coefficient"):
    """The local learning coefficient of every SAE's decoder, known and sampled."""

    loss: Kind = "reconstruction"
    """Or behaviour: the distance from the SAE's own output, whose minimum any SAE is."""
    n_tokens: int = 4096
    """Of held-out text, all of them behind every step; the first of a context does not count."""
    contexts_per_pass: int = 16
    """Contexts in one pass of the model."""
    n_beta: float | None = None
    """Inverse temperature times the number of data; None: n / log n of the tokens."""
    gamma: float = 1000.0
    """Pull towards the decoder as it is."""
    step_share: float = 0.2
    """The step, as a share of the smallest that diverges."""
    n_chains: int = 3
    n_burn_in: int = 60
    """Steps of a chain before the first draw."""
    n_draws: int = 80
    """Of a chain, one a step."""
    max_r_hat: float = 1.2
    """Chains that agree less than this are called drifting."""

    def __post_init__(self) -> None:
        check_counts(self, "n_tokens", "contexts_per_pass")
        if self.gamma <= 0:
            raise ValueError(f"gamma: {self.gamma}; latents that hardly fire need a pull above 0")
        if not 0 < self.step_share < 1:
            raise ValueError(f"step_share: {self.step_share}; give a share between 0 and 1")
        check_chains(self.n_draws, self.max_r_hat)
        n_beta = 1.0 if self.n_beta is None else self.n_beta
        self._sampler(n_beta, 1.0)  # refuses what makes no sense

    def run(self, subject: Subject) -> Result:
        """See Evaluation.run: a row for each site, in the order of the model."""
        subject.check_saes()
        acts = self._activations(subject)
        order = [site for site in subject.model.sites() if site in subject.saes]
        n_beta = n_beta_of(len(acts[order[0]])) if self.n_beta is None else self.n_beta
        rows: list[dict[str, Any]] = []
        arrays: dict[str, Tensor] = {}
        progress = Progress(len(order), unit="SAEs")
        for site in order:
            sae = subject.saes[site]
            loss = DecoderLoss(sae, acts[site], acts[subject.writes[site]], kind=self.loss)
            spectrum = loss.spectrum()
            sampler = self._sampler(n_beta, spectrum[0].item())
            traces = self._traces(loss, sampler, generator_of(subject.seed, site, 0))
            found = estimate(traces, sampler, loss.initial)
            known = loss.known(sampler)
            rows.append(
                {
                    "site": site,
                    "n_latents": sae.d_sae,
                    "n_fired": len(loss.fired),
                    "n_parameters": sae.d_sae * sae.d_out,
                    "limit": loss.limit(),
                    "known": known.coefficient,
                    "curvature": known.curvature,
                    "fall": known.fall,
                    **Chains(traces, found, traces.shape[1]).row(self.max_r_hat),
                    "sigma": loss.sigma,
                    "step": sampler.step,
                }
            )
            arrays[f"spectrum/{site}"] = spectrum.cpu()
            arrays[f"trace/{site}"] = (traces - loss.initial).cpu()
            progress.update(1)
        progress.close()
        shares = [2 * row["curvature"] / row["n_parameters"] for row in rows]
        return Result(
            name=self.word,
            scalars={
                "mean_share": sum(shares) / len(shares),
                "n_beta": n_beta,
                "cut_off": self.gamma / n_beta,
                "n_data": len(acts[order[0]]),
            },
            rows=tuple(rows),
            arrays=arrays,
            provenance=self.provenance(subject),
        )

    def _traces(
        self, loss: DecoderLoss, sampler: Sampler, drawn: torch.Generator
    ) -> Float[Tensor, "chains steps"]:
        """The losses of all chains, side by side."""
        start = loss.start.expand(self.n_chains, -1)
        noise = torch.Generator(start.device).manual_seed(drawn.initial_seed())
        return sample(loss, start, sampler, loss.initial, noise)

    def _activations(self, subject: Subject) -> Mapping[Site, Float[Tensor, "rows _"]]:
        """Of every site that an SAE reads or writes, at the positions that SAEs are trained on."""
        sites = dict.fromkeys([*subject.saes, *subject.writes.values()])
        special = [subject.language_model.tokenizer.eot_id]
        passes = Passes(LiveConfig(), subject.model, list(sites), special)
        contexts = subject.contexts(self.n_tokens).to(subject.device)
        found = [passes.rows(some)[0] for some in contexts.split(self.contexts_per_pass)]
        return {site: torch.cat([acts[site] for acts in found]) for site in sites}

    def _sampler(self, n_beta: float, steepest: float) -> Sampler:
        """With a step that suits the largest curvature."""
        return Sampler(
            n_beta=n_beta,
            step=self.step_share * 4 / (n_beta * steepest + self.gamma),
            gamma=self.gamma,
            n_chains=self.n_chains,
            n_burn_in=self.n_burn_in,
            n_draws=self.n_draws,
        )

    @staticmethod
    def plot(result: Result) -> "dict[str, matplotlib.figure.Figure]":
        """See Evaluation.plot: `coefficients` by site, the `cut_off` against the parameters that
        count, `traces` of the chains.
        """
        from sae_kit.viz import chains, decoders

        settings = result.provenance["evaluation"]
        about = f"{settings['loss']} loss; n beta = {result.scalars['n_beta']:.4g}"
        shares = {
            row["site"]: _shares(result.arrays[f"spectrum/{row['site']}"], row, decoders.CUT_OFFS)
            for row in result.rows
        }
        return {
            "coefficients": decoders.coefficients(
                result.rows, title=f"Learning coefficients of decoders ({about})"
            ),
            "cut_off": decoders.by_cut_off(
                shares,
                used=result.scalars["cut_off"],
                title=f"Decoder weights that count ({result.scalars['n_data']:,} tokens)",
            ),
            "traces": chains.traces(
                {row["site"]: (row, result.arrays[f"trace/{row['site']}"]) for row in result.rows},
                n_burn_in=settings["n_burn_in"],
                unit="loss - loss at the SAE (nats)",
                title=f"Sampling around decoders ({about})",
            ),
        }


def _shares(
    spectrum: Float[Tensor, " n"], row: Mapping[str, Any], cut_offs: Sequence[float]
) -> list[float]:
    """Of all decoder weights, those that count at each cut-off gamma / n beta."""
    # The loss is half of curvature times square, and `scale` is 1 where gamma is.
    counts = [effective_parameters(spectrum / 2, cut_off, scale=1.0) for cut_off in cut_offs]
    return [count / row["n_latents"] for count in counts]
