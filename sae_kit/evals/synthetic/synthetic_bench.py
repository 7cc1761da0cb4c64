"""What eval=synthetic_activations measures on: prompts, real activations, latents, and paths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_kit.evals.base import Subject
from sae_kit.evals.perturb.hosts import Hosts, Place
from sae_kit.evals.perturb.paths import Ray
from sae_kit.evals.perturb.perturbation import Probe
from sae_kit.evals.perturb.pool import Pool
from sae_kit.evals.perturb.responses import KL, L2, JensenShannon, Response
from sae_kit.evals.shared.draws import standard_normal
from sae_kit.evals.shared.prompts import Prompts
from sae_kit.evals.synthetic.generators import GENERATORS, Source, Synthetic, Vocabulary
from sae_kit.models.gpt2 import GPT2
from sae_kit.models.hooks import Site
from sae_kit.sae.base import SAE

PROMPTS_PER_PASS = 64


@final
@dataclass(frozen=True, kw_only=True, eq=False)  # eq: tensors have no single truth value
class Bench:
    """A subject's last positions at one site, and an SAE's latents there."""

    model: GPT2
    prompts: Prompts
    place: Place
    pool: Pool
    """Of the other prompts' last positions."""
    vocabulary: Vocabulary
    """How often latents fire is told by all their positions but the first."""
    part_length: float
    """The mean length of an active latent's part of the activations to be replaced."""

    @staticmethod
    def of(subject: Subject, prompts: Prompts, place: Place, sae: SAE) -> "Bench":
        """Made ready.

        Raises:
            ValueError: there are too few other prompts for a covariance, or for latents to fire.
        """
        last = torch.zeros_like(prompts.others_count)
        last[:, -1] = True
        site, seed = place.write, subject.seed
        (pool,) = Pool.of(
            subject.model, prompts.others, last, [site], n_rows=len(last), seed=seed
        ).values()
        n_fired, n_rows = torch.zeros(sae.d_sae, dtype=torch.int64, device=subject.device), 0
        for tokens, counts in zip(
            prompts.others.split(PROMPTS_PER_PASS),
            prompts.others_count.split(PROMPTS_PER_PASS),
            strict=True,
        ):
            tokens, counts = tokens.to(subject.device), counts.to(subject.device)
            run = subject.model.run(tokens, capture=[site], stop=site)
            code = sae.encode_sparse(run.acts[site][counts])
            n_fired += torch.bincount(code.indices[code.values != 0], minlength=sae.d_sae)
            n_rows += int(counts.sum())
        vocabulary = Vocabulary(sae, n_fired / n_rows, pool.normal.mean)
        return Bench(
            model=subject.model,
            prompts=prompts,
            place=place,
            pool=pool,
            vocabulary=vocabulary,
            part_length=vocabulary.mean_part(_last(subject.model, prompts.hosts, site)),
        )

    def source(self, hosts: Hosts, seed: int) -> Source:
        """What activations are generated from, for some prompts."""
        return Source(
            base=hosts.base[:, 0].float(),
            index=hosts.index,
            pool=self.pool,
            vocabulary=self.vocabulary,
            part_length=self.part_length,
            seed=seed,
        )

    def median_distance(self) -> float:
        """Of two real activations: of each in the pool from the next."""
        rows = self.pool.rows
        return (rows - rows.roll(1, 0)).norm(dim=-1).median().item()

    def median_read_norm(self, read: Site) -> float:
        """Of the other prompts' activations at the end of the model."""
        return _last(self.model, self.prompts.others, read).norm(dim=-1).median().item()

    def audit(self, types: Sequence[str], seed: int) -> dict[str, dict[str, float]]:
        """What the activations of every type are like: see eval=synthetic_activations."""
        index = torch.arange(len(self.prompts.hosts))
        hosts = self.place.hosts(self.model, self.prompts.hosts.to(self.model.device), index)
        source = self.source(hosts, seed)
        return {name: self._audited(source, GENERATORS[name].of(source)) for name in types}

    def _audited(self, source: Source, made: Synthetic) -> dict[str, float]:
        found = {
            "norm": made.vectors.norm(dim=-1).mean().item(),
            "distance": (made.vectors - source.base).norm(dim=-1).mean().item(),
        }
        code = made.code if made.code is not None else source.code(made.vectors)
        active = code.values != 0
        rows, frequency = self.vocabulary.rows, self.vocabulary.log_frequency
        top = code.indices.gather(1, code.values.argmax(1, keepdim=True))
        cosines = (rows[code.indices] * rows[top]).sum(-1)
        others = active & (code.indices != top)
        # Of a latent that is silent in the text no frequency is known.
        known = active & self.vocabulary.alive[code.indices]
        return {
            "l0": active.sum(1).double().mean().item(),
            "log_frequency": frequency[code.indices][known].mean().item(),
            "top_cosine": cosines[others].double().mean().item() if others.any() else 0.0,
            **found,
        }


def _last(
    model: GPT2, tokens: Int[Tensor, "prompts context"], site: Site
) -> Float[Tensor, "prompts d_model"]:
    """The activations at the last position of prompts."""
    acts = [
        model.run(some.to(model.device), capture=[site], stop=site).acts[site][:, -1]
        for some in tokens.split(PROMPTS_PER_PASS)
    ]
    return torch.cat(acts).float()


@final
class Maker:
    """Makes the paths of both experiments.

    Args:
        bench: what is measured on.
        types: of activations.
        n_steps: of a path.
        step: its length, in units of the activation.
        read: where distances are measured.
        seed: of all draws.
    """

    def __init__(
        self,
        bench: Bench,
        types: Sequence[str],
        n_steps: int,
        step: float,
        read: Site,
        seed: int,
    ) -> None:
        self._bench, self._types, self._seed = bench, types, seed
        self._lengths = step * torch.arange(n_steps + 1, dtype=torch.float32)
        self._read = read

    def toward(self, hosts: Hosts) -> dict[str, Probe]:
        """From the hosts' own activations toward one of every type."""
        source = self._bench.source(hosts, self._seed)
        responses: tuple[Response, ...] = (L2(self._read), KL(), JensenShannon())
        probes = {}
        for name in self._types:
            target = GENERATORS[name].of(source).vectors
            ray = Ray(hosts.base, (target - source.base)[:, None], self._lengths)
            probes[name] = Probe(ray, responses)
        return probes

    def plateau(self, hosts: Hosts) -> dict[str, Probe]:
        """From an activation of every type toward a random one, the same for all types."""
        source = self._bench.source(hosts, self._seed)
        standard = standard_normal(hosts.base, hosts.index, self._seed, "plateau")
        away = self._bench.pool.normal.drawn(standard.float())
        probes = {}
        for name in self._types:
            start = self._start(name, source)[:, None]
            ray = Ray(start.to(hosts.base.dtype), away - start, self._lengths)
            probes[name] = Probe(ray, (L2(self._read),), origin=start)
        return probes

    def _start(self, name: str, source: Source) -> Float[Tensor, "hosts d_model"]:
        """The prompt's own activation and its reconstruction, in the place of another prompt's."""
        if name == "model_generated":
            return source.base
        if name == "sae_reconstruction":
            return source.decoded(source.base, source.code(source.base)).vectors
        return GENERATORS[name].of(source).vectors
