"""Write a model's activations to disk, for `activations=cached` to train from."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from sae_kit.config import check_counts, from_node, to_dict
from sae_kit.data.activations import LiveConfig, Passes
from sae_kit.data.cache_manifest import (
    MANIFEST,
    Contents,
    Dtype,
    ModelIdentity,
    row_bytes,
    weights_hash,
)
from sae_kit.data.cache_writer import CacheWriter, RowStream
from sae_kit.data.tokens import TokensConfig, TokenSource, check_context
from sae_kit.dist import world
from sae_kit.jobs.run_folder import Outcome, check_alone, record_start
from sae_kit.models.hooks import match_sites
from sae_kit.models.pretrained import LanguageModel, ModelConfig
from sae_kit.train.loop import TrainingError

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class CacheActivations:
    """The whole config of a cache: conf/cache.yaml."""

    task: str
    path: str | None = None
    """The cache's folder (Hydra's run folder); None: a new one in outputs/activations."""
    sites: str | tuple[str, ...]
    """Patterns of the sites that are kept."""
    model: ModelConfig
    data: TokensConfig
    n_tokens: int = 1_000_000
    """Positions to keep."""
    dtype: Dtype = "float32"
    """The type they are kept in."""
    drop_first_position: bool = True
    """Whether position 0 of every context is left out."""
    drop_special_tokens: bool = True
    """Whether end-of-text tokens are left out, wherever they stand."""
    contexts_per_pass: int = 16
    """Contexts in one model pass."""
    shard_mb: int = 500
    """Size of a file in 10^6 bytes, to the nearest row below; one row at least."""
    seed: int = 0
    """Draws the order in which the text is read."""

    def __post_init__(self) -> None:
        check_counts(self, "n_tokens", "contexts_per_pass", "shard_mb")
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed} is negative; give 0 or more")


def cache_activations(values: dict[str, Any], folder: Path, *, resume: bool) -> Outcome:
    """Write the cache that the config `values` describes into `folder`, or what is missing of it.

    Raises:
        ValueError: the config does not fit together, or the disk is too small; nothing has been
            written then. Or the text ended, where that was not to be foreseen (a hub set, a
            mixture), or the activations cannot be kept.
        TrainingError: the disk refused half way; what is written stays.
    """
    config = from_node(CacheActivations, values)
    check_alone(config.task)
    if resume and (folder / MANIFEST).is_file():
        log.info("%s is finished", folder)
        return Outcome()
    writer = build_writer(config, folder)
    record_start(folder, values)
    contents = writer.contents
    log.info(
        "activations of %s at %d sites, %s positions in %s: %s GB to write in %d shards to %s",
        contents.model.name,
        len(contents.sites),
        f"{contents.n_rows:,}",
        contents.dtype,
        f"{writer.n_bytes_left / 1e9:,.2f}",
        contents.n_shards - len(writer.shards),
        folder,
    )
    log.info("if interrupted, go on with: python train.py resume=%s", folder)
    try:
        writer.write()
    except OSError as error:
        raise TrainingError(
            f"{error}\n{len(writer.shards)} of {contents.n_shards} shards are written. When that "
            f"is mended, go on with: python train.py resume={folder}"
        ) from error
    log.info("train from it: python train.py activations=cached activations.path=%s ...", folder)
    return Outcome()


def build_writer(config: CacheActivations, folder: Path) -> CacheWriter:
    """The writer where it stands, its text opened but nothing new computed."""
    subject = config.model.build()
    check_context(config.data.context_size, subject.model.n_ctx)
    tokens = config.data.open(subject.tokenizer, split="train", world=world(), seed=config.seed)
    positions = LiveConfig(
        drop_first_position=config.drop_first_position,
        drop_special_tokens=config.drop_special_tokens,
    )
    contents = _contents(config, subject)
    passes = Passes(positions, subject.model, list(contents.sites), [subject.tokenizer.eot_id])
    _check_text(config, tokens, passes)
    rows = RowStream(passes, tokens, contexts_per_pass=config.contexts_per_pass)
    return CacheWriter(folder, contents, rows)


def _contents(config: CacheActivations, subject: LanguageModel) -> Contents:
    """What the cache is to hold."""
    model = subject.model
    sites = {site: model.width(site) for site in match_sites(config.sites, model.sites())}
    shard_rows = config.shard_mb * 1_000_000 // row_bytes(sites, config.dtype)
    return Contents(
        model=ModelIdentity(
            name=subject.name,
            revision=subject.revision,
            dtype=config.model.dtype,
            centred=subject.centred,
            sha256=weights_hash(model),
        ),
        sites=sites,
        dtype=config.dtype,
        n_rows=config.n_tokens,
        shard_rows=min(max(1, shard_rows), config.n_tokens),
        data=to_dict(config.data),
        seed=config.seed,
        context_size=config.data.context_size,
        drop_first_position=config.drop_first_position,
        drop_special_tokens=config.drop_special_tokens,
    )


def _check_text(config: CacheActivations, tokens: TokenSource, passes: Passes) -> None:
    """ValueError if the text has fewer positions that count than are asked for: reading it twice
    is the trainer's business. Counted here, which takes no time beside the model; `tokens` stays
    where it is.
    """
    if tokens.n_contexts is None:  # the writer finds out
        return
    start, n = tokens.state_dict(), 0
    for _ in range(tokens.n_contexts):
        n += int(passes.counting(next(tokens)[None]).sum())
        if n >= config.n_tokens:
            break
    tokens.load_state_dict(start)
    if n < config.n_tokens:
        raise ValueError(
            f"n_tokens: {config.n_tokens} is more than the {n} positions that the text has; give "
            f"n_tokens={n} or less (a trainer may read a cache several times), or more text"
        )
