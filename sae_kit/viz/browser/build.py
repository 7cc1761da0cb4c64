"""Builds the site: the page's own files, and shards of what it shows.

Memory: the results, as long as they are in memory anyway, and what is made of one site at a time.
For 12 sites of 24,576 latents see docs/browser.md.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from sae_kit.log import Progress
from sae_kit.result import Result
from sae_kit.viz.browser.atlas import Atlas
from sae_kit.viz.browser.communities import write_communities
from sae_kit.viz.browser.labels import Labels, labels
from sae_kit.viz.browser.latents import write_latents, write_list
from sae_kit.viz.browser.manifest import manifest
from sae_kit.viz.browser.place import building
from sae_kit.viz.browser.prompts import write_prompts
from sae_kit.viz.browser.search import write_search
from sae_kit.viz.browser.shards import Shards

PAGE = Path(__file__).parent / "page"
MAX_BOOLEANS = 1000
"""Quasi-boolean candidates in the list of all, at most."""


def build(results: Sequence[Result], out: Path) -> None:
    """Make the site of these results in the folder `out`; a site of theirs there is replaced.

    Args:
        results: one of dashboard, one of feature_evolution, or both.
        out: absent, empty, or the site of the same SAEs.

    Raises:
        ValueError: results that do not go together or are damaged, or a folder that holds something
            else; nothing is changed then.
        OSError: the disk refused; what was there before is kept.
    """
    atlas = Atlas(results)
    with building(out, {"model": atlas.model, "saes": atlas.saes}) as folder:
        shutil.copytree(PAGE, folder / "page", ignore=shutil.ignore_patterns("index.html"))
        shutil.copy(PAGE / "index.html", folder / "index.html")
        shards = Shards(folder / "data")
        names: Labels = [labels(atlas, site) for site in range(len(atlas.sites))]
        progress = Progress(sum(atlas.d_sae), unit="latents")
        for site, d_sae in enumerate(atlas.d_sae):
            write_latents(atlas, shards, site, names)
            write_list(atlas, shards, site, names)
            progress.update(d_sae)
        progress.close()
        write_search(atlas, shards, names)
        extras = {
            **write_communities(atlas, shards, names),
            **write_prompts(atlas, shards, names),
            **write_booleans(atlas, shards, names),
        }
        # Last: a page without a manifest says that the build is incomplete.
        shards.write("manifest", manifest(atlas, extras))


def write_booleans(atlas: Atlas, shards: Shards, names: Labels) -> dict[str, int]:
    """All quasi-boolean candidates, `[kind, strict, parent, parent, child]` with each of the three
    as `[site, latent, label]`, in shard "booleans"; returns the manifest's part: how many.
    """
    rows = [
        [
            kind,
            strict,
            *([at, one, names[at][one]] for at, one in ((up, a), (up, b), (down, child))),
        ]
        for up, down, found in atlas.booleans
        for a, b, child, kind, strict in found.tolist()
    ]
    if rows:
        rows.sort(key=lambda row: -row[1])  # those that passed the strict test first
        shards.write("booleans", rows[:MAX_BOOLEANS])
    return {"n_booleans": len(rows), "n_strict": sum(row[1] for row in rows)}
