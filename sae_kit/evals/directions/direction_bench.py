"""What eval=sensitive_directions measures on: prompts, real activations and SAEs, made ready."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Bool
from torch import Tensor

from sae_kit.evals.base import Subject
from sae_kit.evals.directions.directions import Given
from sae_kit.evals.directions.sae_directions import Dictionary
from sae_kit.evals.perturb.hosts import Hosts, Place
from sae_kit.evals.perturb.perturbation import Curves, Probe, respond
from sae_kit.evals.perturb.pool import Pool
from sae_kit.evals.perturb.responses import KL, L2, CEIncrease, Response
from sae_kit.evals.shared.kept import Part
from sae_kit.evals.shared.prompts import Prompts
from sae_kit.models.hooks import Site

CONTEXTS_PER_PASS = 16


@final
class Bench:
    """Perturbs the prompts of a subject at any of some sites.

    Args:
        subject: model, SAEs and seed.
        prompts: of its text.
        sites: where.
        position: the one position that is perturbed; None is all of them.
        read: where distances are measured.
        n_pool_rows: real activations to draw from, of each site.
        memory_mb: what perturbed runs take, in MiB.

    Raises:
        ValueError: the model has no such place, no position counts there, or there are too few
            prompts to know what activations are like.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Prompts,
        sites: Sequence[Site],
        *,
        position: int | None,
        read: Site,
        n_pool_rows: int,
        memory_mb: int,
    ) -> None:
        self._subject, self._prompts, self._position = subject, prompts, position
        self._read, self._memory_mb = read, memory_mb
        n_pos = prompts.hosts.shape[1]
        for site in sites:
            Place(write=site, position=position).check(subject.model, n_pos, [read])
        self._positions = torch.arange(n_pos)
        # As in the paper, the last position has no next token and is not looked at.
        counts = prompts.hosts_count & (self._positions < n_pos - 1)
        if position is not None:
            self._positions = self._positions[position % n_pos, None]
            counts = prompts.hosts_count[:, self._positions]
        if not counts.any():
            raise ValueError(
                "position: there is none that counts in any prompt; choose another, set eval."
                "drop_first_position and eval.drop_special_tokens to false, or give longer prompts"
            )
        self.counts = counts
        """`[hosts pos]`, which of the perturbed positions are."""
        self._has_next = bool(self._positions[0] < n_pos - 1)
        self.pools = Pool.of(
            subject.model,
            prompts.others,
            prompts.others_count,
            sites,
            n_rows=n_pool_rows,
            seed=subject.seed,
        )
        """What activations are like, by site."""
        self.dictionaries: dict[Site, dict[str, Dictionary]] = {
            site: self._dictionaries(site) for site in sites
        }
        """The SAEs at each site, by the label of their set."""

    @torch.no_grad()
    def _dictionaries(self, site: Site) -> dict[str, Dictionary]:
        """The SAEs at a site, having seen the prompts and the pool."""
        mean, n_hosts = self.pools[site].normal.mean, len(self._prompts.hosts)
        found = {
            one.label: Dictionary(one.saes[site], mean, n_hosts)
            for one in self._subject.sets
            if site in one.saes
        }
        if not found:
            return {}
        model, n_before = self._subject.model, 0
        perturbed = torch.zeros_like(self._prompts.hosts_count)
        perturbed[:, self._positions] = self.counts
        for tokens, counts, there in zip(
            self._prompts.hosts.split(CONTEXTS_PER_PASS),
            self._prompts.hosts_count.split(CONTEXTS_PER_PASS),
            perturbed.split(CONTEXTS_PER_PASS),
            strict=True,
        ):
            acts = model.run(tokens.to(model.device), capture=[site], stop=site).acts[site]
            at = counts.to(model.device).nonzero(as_tuple=True)
            for dictionary in found.values():
                dictionary.watch(acts[at], at[0] + n_before, there.to(model.device)[at])
            n_before += len(tokens)
        for dictionary in found.values():
            dictionary.watch_others(self.pools[site].rows)
        return found

    def respond(
        self, site: Site, probes: Callable[[Hosts, Given], Mapping[str, Probe]], kept: Part
    ) -> Curves:
        """See `perturbation.respond`; probes get what directions are made of too."""

        def of(hosts: Hosts) -> Mapping[str, Probe]:
            given = Given(
                base=hosts.base,
                index=hosts.index,
                positions=self._positions.to(hosts.base.device),
                pool=self.pools[site],
                seed=self._subject.seed,
            )
            return probes(hosts, given)

        return respond(
            self._subject.model,
            self._prompts.hosts,
            Place(write=site, position=self._position),
            of,
            memory_mb=self._memory_mb,
            kept=kept,
        )

    def responses(self) -> tuple[Response, ...]:
        """KL, and the distance at the read site."""
        return KL(), L2(self._read)

    def losses(self, hosts: Hosts) -> tuple[Response, ...]:
        """The increase of cross-entropy, where a token comes after the perturbed ones."""
        return (CEIncrease(hosts.targets()),) if self._has_next else ()

    def mask(self, given: Given) -> Bool[Tensor, "hosts pos 1"]:
        """Which of some hosts' positions count."""
        return self.counts[given.index].to(given.base.device)[..., None]

    def about(self, site: Site, label: str) -> dict[str, Any]:
        """The columns that say which SAE it is."""
        dictionary = self.dictionaries[site][label]
        l0 = dictionary.means()["l0"]
        return {"saes": label, "objective": dictionary.objective, "l0": l0}
