"""A cache of a small random model's activations on random contexts, for the tests that share it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sae_kit.config import to_dict
from sae_kit.data.activations import LiveConfig, Passes
from sae_kit.data.cache_manifest import Contents, Dtype, Manifest, ModelIdentity, weights_hash
from sae_kit.data.cache_writer import CacheWriter, RowStream
from sae_kit.data.text import TextConfig
from sae_kit.data.tokens import Contexts, ContextStream, TokensConfig
from sae_kit.dist import World
from sae_kit.models.gpt2 import GPT2

DATA = TextConfig(paths=("a", "b"), context_size=16)
SITES = ("blocks.1.hook_resid_pre", "blocks.1.mlp.hook_post", "blocks.2.hook_resid_mid")
N_POS, EOT, PER_PASS = DATA.context_size, 7, 4


class RandomContexts(Contexts):
    """Random tokens; every third context has end-of-text tokens in it."""

    n_contexts = None
    n_tokens = None
    fingerprint = "random"

    def __getitem__(self, index: int) -> Tensor:
        tokens = torch.randint(8, 300, (N_POS,), generator=torch.Generator().manual_seed(index))
        tokens[0], tokens[1] = EOT, 8 + index % 292
        if index % 3 == 0:
            tokens[5] = tokens[11] = EOT
        return tokens


def stream(config: TokensConfig = DATA) -> ContextStream:
    return ContextStream(RandomContexts(), world=World(0, 1), config=config)


def passes(model: GPT2, sites: Sequence[str] = SITES) -> Passes:
    return Passes(LiveConfig(), model, sites, [EOT])


def contents(
    model: GPT2,
    *,
    sites: Sequence[str] = SITES,
    n_rows: int = 300,
    shard_rows: int = 64,
    dtype: Dtype = "float32",
) -> Contents:
    return Contents(
        model=ModelIdentity(
            name="random", revision=None, dtype="float32", centred=False, sha256=weights_hash(model)
        ),
        sites={site: model.width(site) for site in sites},
        dtype=dtype,
        n_rows=n_rows,
        shard_rows=shard_rows,
        data=to_dict(DATA),
        seed=0,
        context_size=N_POS,
        drop_first_position=True,
        drop_special_tokens=True,
    )


def writer(folder: Path, model: GPT2, **changed: object) -> CacheWriter:
    folder.mkdir(parents=True, exist_ok=True)
    held = contents(model, **changed)
    rows = RowStream(passes(model, list(held.sites)), stream(), contexts_per_pass=PER_PASS)
    return CacheWriter(folder, held, rows)


def write(folder: Path, model: GPT2, **changed: object) -> Manifest:
    """Write a whole cache; `changed` as the keywords of `contents`."""
    return writer(folder, model, **changed).write()


def rows_in_order(model: GPT2, n_rows: int, sites: Sequence[str] = SITES) -> dict[str, Tensor]:
    """The first rows in reading order, from the same passes as the writer's."""
    run, tokens, found = passes(model, sites), stream(), []
    while sum(len(rows[sites[0]]) for rows in found) < n_rows:
        found.append(run.rows(torch.stack([next(tokens) for _ in range(PER_PASS)]))[0])
    return {site: torch.cat([rows[site] for rows in found])[:n_rows] for site in sites}


def context_of_rows(n_rows: int) -> list[int]:
    """The context that each of the first rows in reading order comes from."""
    every, index = [], 0
    while len(every) < n_rows:
        every += [index] * (N_POS - 1 - (2 if index % 3 == 0 else 0))
        index += 1
    return every[:n_rows]


def digests(folder: Path) -> dict[str, str]:
    """A hash of every file, by its name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
