"""The SAE trainer: one SAE per site, all fed by one pass of the model.

A step takes one batch, and site by site encodes, differentiates and updates, so that only one
site's gradients exist at a time. Sites never touch each other: an SAE trained among twelve is bit
for bit the one trained alone.

Limits: bit for bit holds on one machine with one number of threads; and reading an attention
pattern or a LayerNorm's inside makes the model compute it in another way, whose rounding the sites
behind it see.
"""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, final

import torch
from torch import Tensor

from sae_kit.config import check_counts
from sae_kit.data.activations import ActivationSource
from sae_kit.dist import world
from sae_kit.log import Logger
from sae_kit.maths import fvu
from sae_kit.models.hooks import Site
from sae_kit.sae.base import SAE, Moment, SAEConfig
from sae_kit.sae.code import SparseCode
from sae_kit.state import State
from sae_kit.timing import Stopwatch
from sae_kit.train.aim import aim
from sae_kit.train.firing import Firing
from sae_kit.train.loop import Diverged, Loop, LoopPlan, Metrics
from sae_kit.train.objective import Objective, SiteOutput, Trained
from sae_kit.train.parallel import PARALLEL, Parallel, Replicated
from sae_kit.train.schedule import peak, trapezoid

log = logging.getLogger(__name__)

PRECISIONS = ("exact", "screened")
EXPLODED = 1e4
"""An FVU that no run recovers from: errors a hundred times as wide as the activations. Dense SAEs
start at (d_sae / 2 d_in)^2, which leaves them room to an expansion by 200.
"""
_TOTAL = "total"
N_INIT_ROWS = 8192  # rows from which an SAE starts; see SAE.init_from


@final
@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How to train SAEs, whatever their architecture."""

    n_tokens: int = 1_000_000
    """Positions to train on; every SAE sees each of them."""
    batch_rows: int = 2048
    """Positions per optimiser step, of all processes together."""
    lr: float = 4e-3
    """Adam's peak learning rate."""
    beta1: float = 0.9
    """Adam's decay of the mean gradient."""
    beta2: float = 0.99
    """Adam's decay of the mean squared gradient; 0.999 remembers a thousand steps."""
    clip_norm: float | None = 1.0
    """The largest norm of an SAE's gradient, all its weights together; larger ones are scaled down
    to it. None: they are not.
    """
    n_warmup_steps: int = 20
    """Steps of linear warm-up of the learning rate."""
    decay_fraction: float = 0.3
    """The share of the run, at its end, over which the rate falls linearly to zero."""
    precision: str = "exact"
    """exact: encoder products in float32. screened: bfloat16 products propose the latents that may
    be active, float32 decides among them; for architectures of the TopK family.
    """
    dead_after_tokens: int = 10_000
    """A latent is called dead when it has not fired for this many positions."""
    log_every: int = 10
    """Steps between log lines."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    n_checkpoints: int = 2
    """Checkpoints kept; older ones are deleted."""
    parallel: str = "data"
    """Of several processes (torchrun), data: each takes a part of every batch; sites: each takes
    some sites. See `sae_kit.train.parallel`.
    """
    seed: int = 0
    """Draws the initial weights and the order of the data."""

    def __post_init__(self) -> None:
        check_counts(
            self,
            "n_tokens",
            "batch_rows",
            "dead_after_tokens",
            "log_every",
            "checkpoint_every",
            "n_checkpoints",
        )
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision: {self.precision!r} is unknown; give {' or '.join(PRECISIONS)}"
            )
        if self.parallel not in PARALLEL:
            raise ValueError(
                f"parallel: {self.parallel!r} is unknown; give {' or '.join(PARALLEL)}"
            )
        if self.n_warmup_steps < 0:
            raise ValueError(f"n_warmup_steps: {self.n_warmup_steps} is negative; 0 is no warm-up")
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed} is negative; give 0 or more")
        if not self.lr > 0:
            raise ValueError(f"lr: {self.lr} is not positive")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(
                f"clip_norm: {self.clip_norm} is not positive; null leaves gradients as they are"
            )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not in [0, 1)")
        if not 0 <= self.decay_fraction <= 1:
            raise ValueError(f"decay_fraction: {self.decay_fraction} is not between 0 and 1")
        if self.n_tokens < self.batch_rows:
            raise ValueError(
                f"n_tokens: {self.n_tokens} is less than one batch of batch_rows="
                f"{self.batch_rows}; give {self.batch_rows} or more, or lower batch_rows"
            )

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.n_tokens // self.batch_rows

    @property
    def n_decay_steps(self) -> int:
        """Steps at the end of the run over which the learning rate falls."""
        return int(self.decay_fraction * self.n_steps)

    @property
    def n_counted_steps(self) -> int:
        """Steps at the end of the run that firing frequencies are counted over: while the learning
        rate falls, and a tenth of the run at least.
        """
        return max(self.n_decay_steps, -(-self.n_steps // 10))


@final
class Trainer:
    """Trains one SAE per site; a `sae_kit.train.loop.Task`."""

    def __init__(
        self,
        config: TrainerConfig,
        sae: SAEConfig,
        objective: Objective,
        source: ActivationSource,
        *,
        writes: Mapping[Site, Site] | None = None,
        parallel: Parallel | None = None,
        device: torch.device,
        stopwatch: Stopwatch | None = None,
    ):
        """Build the SAEs; `initialise` or `load_state_dict` comes next.

        Args:
            config: how to train.
            sae: what to train.
            objective: what for.
            source: the activations of every site that is read or written.
            writes: for transcoders, the site that each one's output stands for, by the site it
                reads; None = an autoencoder for every site of `source`.
            parallel: this process's part in the run; None = that of a process with all SAEs.
            device: where the SAEs are to lie.
            stopwatch: counts where the time goes.

        Raises:
            ValueError: the SAE does not fit its sites, or cannot be trained as `config` says, or
                not from this source.
        """
        if objective.needs_contexts and not source.gives_runs:
            raise ValueError(
                f"objective: {objective.word} needs the model and whole contexts; open the "
                "activations with sae_kit.data.contexts.open_contexts"
            )
        self.config, self.objective, self.source = config, objective, source
        self.n_tokens_per_step = config.batch_rows
        self.writes = dict(writes or {site: site for site in source.widths})
        self.saes: dict[Site, SAE] = {
            site: _build(sae, source.widths, site, target, seed=config.seed).to(device)
            for site, target in self.writes.items()
        }
        self._screen()
        self.parallel = parallel or Replicated(world())
        self.firing = {
            site: Firing(sae.d_sae, device, self.parallel.total) for site, sae in self.saes.items()
        }
        self.optimizers = {
            site: torch.optim.Adam(
                sae.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), fused=True
            )
            for site, sae in self.saes.items()
        }
        self.stopwatch = stopwatch or Stopwatch()

    @property
    def trained(self) -> list[Trained]:
        """The SAEs with the sites they join."""
        return [Trained(sae, site, self.writes[site]) for site, sae in self.saes.items()]

    def initialise(self) -> None:
        """Fill the buffer and start every SAE from the data."""
        self.source.prepare()
        for one in self.trained:
            x = self.source.sample(one.reads, N_INIT_ROWS)
            target = x if one.writes == one.reads else self.source.sample(one.writes, N_INIT_ROWS)
            if one.sae.is_transcoder:
                aim(one.sae, x, target)
            else:
                one.sae.init_from(x, target)
            self.parallel.start(one.sae)

    def fit(
        self, folder: Path, loggers: Sequence[Logger], *, resume: bool = False
    ) -> Signals | None:
        """Train to the end, or until a signal asks to stop, which is then returned.

        Args:
            folder: the run's folder; checkpoints go to its `checkpoints/`.
            loggers: get the metrics every `log_every` steps.
            resume: whether to go on from the newest checkpoint in `folder`, if it has one.
        """
        c = self.config
        plan = LoopPlan(
            n_steps=c.n_steps,
            log_every=c.log_every,
            checkpoint_every=c.checkpoint_every,
            n_checkpoints=c.n_checkpoints,
            shown=("FVU", "L0"),
            remedy="lower trainer.lr or raise trainer.n_warmup_steps",
        )
        loop = Loop(self, plan, folder=folder, loggers=loggers)
        if not (resume and loop.resume()):
            self._warn_of_a_low_peak()
            self.initialise()
        return loop.run()

    def _warn_of_a_low_peak(self) -> None:
        c = self.config
        top = peak(n_steps=c.n_steps, n_warmup=c.n_warmup_steps, n_decay=c.n_decay_steps)
        if top < 1:
            log.warning(
                "the learning rate never gets above %.3g: %d warm-up steps and %d of decay do not "
                "fit into %d; lower trainer.n_warmup_steps or raise trainer.n_tokens",
                *(top * c.lr, c.n_warmup_steps, c.n_decay_steps, c.n_steps),
            )

    def step(self, step: int, *, measure: bool) -> Metrics:
        """One optimiser step of every SAE."""
        c = self.config
        batch = next(self.source)
        at = Moment(step, c.n_steps)
        rise_and_fall = trapezoid(
            step, n_steps=c.n_steps, n_warmup=c.n_warmup_steps, n_decay=c.n_decay_steps
        )
        lr = c.lr * rise_and_fall * self.objective.pace(at)
        dead = {site: firing.dead(c.dead_after_tokens) for site, firing in self.firing.items()}
        totals: dict[Site, Tensor] = {}
        measured: dict[Site, Metrics] = {}
        parts = self.objective.parts(self.trained, batch, at=at, dead=dead)
        while True:
            with self.stopwatch("SAE forward"):
                part = next(parts, None)
            if part is None:
                break
            with self.stopwatch("SAE backward"):
                part.total.backward()
            for site, output in part.outputs.items():
                self._update(site, lr)
                totals[site] = output.total.detach()
                with self.stopwatch("statistics"):
                    counted = step >= c.n_steps - c.n_counted_steps
                    self.firing[site].note(output.out.code, count=counted)
                    if measure:
                        measured[site] = self._measure(site, output)
        metrics: Metrics = {
            "loss": torch.stack(list(totals.values())).mean(),
            "lr": lr,
            "n_contexts": batch.n_contexts,
        }
        return {**metrics, **self._over_sites(totals, measured)} if measure else metrics

    def _screen(self) -> None:
        """Switch screening on where the config asks for it."""
        if self.config.precision != "screened":
            return
        for sae in self.saes.values():
            if not sae.screens:
                raise ValueError(
                    f"precision: 'screened' does not fit sae.arch={sae.config.word}: its active "
                    "latents are not the largest of a row or batch; give trainer.precision=exact"
                )
            sae.screened = True

    def _update(self, site: Site, lr: float) -> None:
        sae, optimizer = self.saes[site], self.optimizers[site]
        with self.stopwatch("optimiser"):
            self.parallel.reduce(sae)
            sae.after_backward()
            if self.config.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(sae.parameters(), self.config.clip_norm)
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
            sae.after_step()
            self.parallel.agree(sae)

    @torch.no_grad()
    def _measure(self, site: Site, output: SiteOutput) -> Metrics:
        """FVU, L0, share of dead latents, loss terms and the objective's own measures of a site."""
        code = output.out.code
        l0 = code.l0() if isinstance(code, SparseCode) else (code != 0).sum(-1)
        return {
            "FVU": fvu(output.target, output.out.recon),
            "L0": l0.float().mean(),
            "dead": self.firing[site].dead(self.config.dead_after_tokens).float().mean(),
            **{f"loss_{term}": value for term, value in output.terms.items()},
            **output.measures,
        }

    def _over_sites(
        self, totals: Mapping[Site, Tensor], measured: Mapping[Site, Metrics]
    ) -> Metrics:
        """What was measured in all processes, as "<site>/<name>", and means over the sites.

        Raises:
            Diverged: a loss is not finite, or an error has exploded; in every process.
        """
        own = {site: {_TOTAL: total, **measured[site]} for site, total in totals.items()}
        collected = self.parallel.collect(own)
        for site, found in collected.items():
            if not math.isfinite(loss := float(found[_TOTAL])):
                raise Diverged(f"{site}: the loss is {loss}")
            if (error := float(found["FVU"])) > EXPLODED:
                raise Diverged(f"{site}: the error has exploded (FVU {error:.3g})")
        metrics: dict[str, Tensor | int | float] = {
            f"{site}/{name}": value
            for site, found in collected.items()
            for name, value in found.items()
            if name != _TOTAL
        }
        for name in ("FVU", "L0", "dead"):
            values = [float(found[name]) for found in collected.values()]
            metrics[name] = sum(values) / len(values)
        if len(collected) > len(totals) or self.parallel.world.size > 1:
            losses = [float(found[_TOTAL]) for found in collected.values()]
            metrics["loss"] = sum(losses) / len(losses)
        return metrics

    def state_dict(self) -> State:
        """This process's part of all that a step depends on: weights, optimisers, firing statistics
        (of SAEs that others have as well: process 0 only) and the source.
        """
        return {
            "source": self.source.state_dict(),
            "sites": {
                site: {
                    "sae": sae.state_dict(),
                    "optimizer": self.optimizers[site].state_dict()["state"],
                    "firing": self.firing[site].state_dict(),
                }
                for site, sae in (self.saes.items() if self.parallel.saves else ())
            },
        }

    def load_parts(self, parts: Sequence[State]) -> None:
        """Continue from what every process of a run returned from `state_dict`.

        Exactly, with as many processes as then. With another number, SAEs and optimisers are
        restored and the data goes on behind what has been read.
        """
        here, missing = self.parallel.world, set(self.saes)
        alike = len(parts) == here.size
        # The own part first; one at a time, as each may hold gigabytes of activations.
        own, sources = (here.rank if alike else 0), []
        for number in sorted(range(len(parts)), key=lambda number: number != own):
            if alike and number != own and not missing:
                break
            part = parts[number]
            for site in missing & part["sites"].keys():
                self._load_site(site, part["sites"][site])
                missing.remove(site)
            sources.append((number, part["source"]))
        if missing:
            raise ValueError(f"resume: the checkpoint has no SAE for {sorted(missing)[0]}")
        if alike:
            self.source.load_state_dict(sources[0][1])
        else:
            self.source.continue_from([source for _, source in sorted(sources, key=_number)])

    def _load_site(self, site: Site, saved: State) -> None:
        optimizer = self.optimizers[site]
        self.saes[site].load_state_dict(saved["sae"])
        optimizer.load_state_dict(
            {"state": saved["optimizer"], "param_groups": optimizer.state_dict()["param_groups"]}
        )
        self.firing[site].load_state_dict(saved["firing"])


def _build(
    config: SAEConfig, widths: Mapping[Site, int], reads: Site, writes: Site, *, seed: int
) -> SAE:
    d_out = None if writes == reads else widths[writes]
    return config.build(widths[reads], d_out, generator=_generator(seed, reads))


def _number(numbered: tuple[int, Any]) -> int:
    return numbered[0]


def _generator(seed: int, site: Site) -> torch.Generator:
    """The site's own, so that its SAE does not depend on which other sites there are."""
    digest = hashlib.sha256(f"{seed}/{site}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
