"""The main job: an SAE for every site, or a transcoder for every pair of sites, trained, saved and
measured on held-out text.
"""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from sae_kit import dist
from sae_kit.config import from_node, to_dict
from sae_kit.data.activations import ActivationsConfig, ActivationSource
from sae_kit.data.contexts import open_contexts
from sae_kit.data.tokens import TokensConfig, check_context
from sae_kit.dist import world
from sae_kit.evals.base import Subject
from sae_kit.evals.core import Core
from sae_kit.formats.base import SAES_FOLDER, load_saes, save_sae
from sae_kit.jobs.run_folder import Outcome, record_start
from sae_kit.log import LoggerConfig, NoneConfig
from sae_kit.models.hooks import Site, match_sites, pair_sites
from sae_kit.models.pretrained import LanguageModel, ModelConfig
from sae_kit.result import Result
from sae_kit.sae.base import SAE, SAEConfig
from sae_kit.timing import Stopwatch
from sae_kit.train.objective import Objective
from sae_kit.train.parallel import PARALLEL, rows_per_process
from sae_kit.train.trainer import Trainer, TrainerConfig

log = logging.getLogger(__name__)

FINAL_EVALUATION = Core(n_tokens=32_768, n_splice_tokens=4_096)
"""What the closing table is measured with: a short form of eval=core."""


@final
@dataclass(frozen=True, kw_only=True)
class TrainSAEs:
    """The whole config of a run: conf/train.yaml."""

    task: str
    sites: str | tuple[str, ...]
    """Patterns of the sites that SAEs read, one SAE each."""
    writes: str | tuple[str, ...] | None = None
    """For transcoders, patterns of the sites that they write, as many; null = autoencoders."""
    model: ModelConfig
    data: TokensConfig
    activations: ActivationsConfig
    sae: SAEConfig
    objective: Objective
    trainer: TrainerConfig
    logger: LoggerConfig


@final
@dataclass(frozen=True)
class Silent:
    """Latents that never fired while frequencies were counted."""

    shares: Mapping[Site, float]
    """By site, their share of all latents."""
    n_rows: int
    """Positions counted over."""


def train_saes(values: dict[str, Any], folder: Path, *, resume: bool) -> Outcome:
    """Train as the config `values` says, in the run folder; a run's score is its mean FVU.

    Raises:
        ValueError: the config does not fit together; nothing has been written then.
    """
    config = from_node(TrainSAEs, values)
    subject = config.model.build()
    check_context(config.data.context_size, subject.model.n_ctx)
    stopwatch = Stopwatch()
    trainer = build_trainer(config, subject, stopwatch)
    sites = list(config_sites(config, subject))
    # One context, so that a lack of held-out text shows now and not after the training.
    _subject(config, subject, trainer.saes).contexts(1)
    record_start(folder, values)
    log.info("run folder: %s", folder)
    log.info("model %s; %d sites: %s", subject.name, len(sites), ", ".join(sites))
    logs = config.logger if world().rank == 0 else NoneConfig()
    with contextlib.closing(logs.build(folder, values)) as logger:
        stopped = trainer.fit(folder, [logger], resume=resume)
    score = None
    if stopped is None:
        log.info("where the time went: %s", stopwatch.summary())
        if trainer.parallel.saves:
            export(config, subject, trainer, folder)
        silent = silent_shares(trainer)  # after which everything is saved
        if world().rank == 0:
            saes: Mapping[Site, SAE] = trainer.saes
            if len(saes) < len(sites):  # other processes have the others
                device = subject.model.device
                saes = {site: sae.to(device) for site, sae in load_saes(folder).items()}
            result = measure(config, subject, trainer, saes, folder)
            log.info("\n%s\n\n%s", closing_table(result, silent), whats_next(folder, sites))
            score = float(result.scalars["mean_fvu"])
        score = dist.gather(score)[0]
    return Outcome(stopped, score)


def config_sites(config: TrainSAEs, subject: LanguageModel) -> dict[Site, Site]:
    """The sites that SAEs read, with those that they write."""
    known = subject.model.sites()
    if config.writes is None:
        return {site: site for site in match_sites(config.sites, known)}
    return pair_sites(config.sites, config.writes, known)


def build_trainer(config: TrainSAEs, subject: LanguageModel, stopwatch: Stopwatch) -> Trainer:
    """The trainer of a run at its start, its data opened but nothing computed yet."""
    writes = config_sites(config, subject)
    parallel = PARALLEL[config.trainer.parallel](world())
    owned = parallel.owned(writes)
    return Trainer(
        config.trainer,
        config.sae,
        config.objective,
        parallel.source(_open_source(config, subject, writes, stopwatch), writes),
        writes=owned,
        parallel=parallel,
        device=subject.model.device,
        stopwatch=stopwatch,
    )


def _open_source(
    config: TrainSAEs, subject: LanguageModel, writes: Mapping[Site, Site], stopwatch: Stopwatch
) -> ActivationSource:
    """The activations of all sites read or written, at their start."""
    model, seed = subject.model, config.trainer.seed
    batch_rows = rows_per_process(config.trainer.batch_rows, world())
    sites = list(dict.fromkeys([*writes, *writes.values()]))
    observed = config.objective.observes(writes.values(), model.sites())
    tokens = config.data.open(subject.tokenizer, split="train", world=world(), seed=seed)
    special_ids = [subject.tokenizer.eot_id]
    if config.objective.needs_contexts:
        return open_contexts(
            config.activations,
            model,
            sites,
            tokens,
            observed=observed,
            batch_rows=batch_rows,
            special_ids=special_ids,
            stopwatch=stopwatch,
        )
    return config.activations.open(
        model,
        sites,
        tokens,
        batch_rows=batch_rows,
        special_ids=special_ids,
        seed=seed,
        stopwatch=stopwatch,
    )


def export(config: TrainSAEs, subject: LanguageModel, trainer: Trainer, folder: Path) -> None:
    """Fold the input scales into the SAEs and write each to `saes/<site>/`."""
    for site, sae in trainer.saes.items():
        scales = trainer.source.scales
        sae.fold_scales(scales[site], scales[trainer.writes[site]])
        sae.metadata = _metadata(config, subject, trainer, site)
        save_sae(
            sae,
            folder / SAES_FOLDER / site,
            metadata=sae.metadata,
            sparsity=trainer.firing[site].frequency(),
        )


def _metadata(
    config: TrainSAEs, subject: LanguageModel, trainer: Trainer, site: Site
) -> dict[str, Any]:
    """What SAELens' files say about an SAE, and under `training` what they have no word for."""
    source, dropped_ids = trainer.source, [subject.tokenizer.eot_id]
    written = trainer.writes[site]
    return {
        "model_name": subject.name,
        "hook_name": site,
        **({"hook_name_out": written} if written != site else {}),
        "context_size": config.data.context_size,
        "prepend_bos": config.data.prepend_bos,
        "seqpos_slice": [1 if source.drop_first_position else None, None],
        "exclude_special_tokens": dropped_ids if source.drop_special_tokens else False,
        "model_from_pretrained_kwargs": {"center_writing_weights": subject.centred},
        "drop_first_position": source.drop_first_position,
        "drop_special_tokens": source.drop_special_tokens,
        "training": {
            "data": to_dict(config.data) if source.text is None else dict(source.text),
            "activations": to_dict(config.activations),
            "objective": to_dict(config.objective),
            "trainer": to_dict(config.trainer),
            "model_revision": subject.revision,
            "folded_input_scale": source.scales[site],
            **({"folded_output_scale": source.scales[written]} if written != site else {}),
        },
    }


def measure(
    config: TrainSAEs,
    subject: LanguageModel,
    trainer: Trainer,
    saes: Mapping[Site, SAE],
    folder: Path,
) -> Result:
    """The SAEs on held-out text, saved to `evaluation/`."""
    evaluation = replace(
        FINAL_EVALUATION,
        drop_first_position=trainer.source.drop_first_position,
        drop_special_tokens=trainer.source.drop_special_tokens,
    )
    result = evaluation.run(_subject(config, subject, saes))
    result.save(folder / "evaluation")
    return result


def _subject(config: TrainSAEs, subject: LanguageModel, saes: Mapping[Site, SAE]) -> Subject:
    return Subject(
        language_model=subject,
        saes=saes,
        tokens=config.data,
        seed=config.trainer.seed,
    )


def silent_shares(trainer: Trainer) -> Silent:
    """Latents that never fired while frequencies were counted, at the sites of all processes."""
    own = {site: float((f.n_fired == 0).double().mean()) for site, f in trainer.firing.items()}
    shares = {site: share for part in dist.gather(own) for site, share in part.items()}
    return Silent(shares, next(iter(trainer.firing.values())).n_rows)


def closing_table(result: Result, silent: Silent) -> str:
    """One line per site."""
    lines = [f"{'site':<28}{'L0':>7}{'FVU':>9}{'dead %':>8}{'CE recovered':>14}{'KL':>9}"]
    for row in result.rows:
        dead = silent.shares[str(row["site"])]
        lines.append(
            f"{row['site']:<28}{row['l0']:>7.1f}{row['fvu']:>9.4f}{100 * dead:>8.1f}"
            f"{row['ce_recovered']:>14.4f}{row['kl']:>9.4f}"
        )
    lines.append(
        f"(held-out text; dead: silent for the last {silent.n_rows:,} training tokens; KL in nats)"
    )
    return "\n".join(lines)


def whats_next(folder: Path, sites: list[Site]) -> str:
    """What a user may want to do with the run."""
    one = folder / SAES_FOLDER / sites[len(sites) // 2]
    return (
        f"SAEs:      {folder / SAES_FOLDER} (SAELens layout)\n"
        f"in Python: from sae_kit import load_sae; sae = load_sae({str(one)!r})\n"
        f"evaluate:  python eval.py eval=core run={folder}"
    )
