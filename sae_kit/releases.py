"""Lists the public SAEs that `load_sae` and `load_saes` know by name.

    python -m sae_kit.releases                     all of them
    python -m sae_kit.releases res                 those that have "res" in their name, sites, ...
    python -m sae_kit.releases gpt2-small-res-jb   one in detail, with the lines that load it
    python -m sae_kit.releases res --json          one object a line, for programs

Where they are and what is known of them is in formats/releases.yaml; nothing is fetched.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence

from sae_kit.config import nearest
from sae_kit.formats.releases import Release, releases
from sae_kit.formats.sites import layer_of

HEADINGS = ("release", "SAEs", "sites", "d_sae", "kind", "L0", "EV")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was asked for; 1 if there is no such release."""
    parser = argparse.ArgumentParser(
        prog="python -m sae_kit.releases", description="The public SAEs that can be loaded by name."
    )
    parser.add_argument("search", nargs="?", default="", help="a release, or a part of its entry")
    parser.add_argument("--sites", action="store_true", help="print every SAE and its site")
    parser.add_argument("--json", action="store_true", help="print one JSON object a release")
    asked = parser.parse_args(arguments)
    found = search(asked.search)
    if not found:
        close = nearest(asked.search, releases())
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        print(f"no release has {asked.search!r}{hint}", file=sys.stderr)
        return 1
    if asked.json:
        print("\n".join(json.dumps(dataclasses.asdict(release)) for release in found))
    elif asked.sites:
        print("\n".join(f"{one.name}/{sae.id}  {sae.site}" for one in found for sae in one.saes))
    elif len(found) == 1:
        print(detail(found[0]))
    else:
        print(table(found))
    return 0


def search(word: str) -> list[Release]:
    """The release of that name, or those that have the word in their name, text or sites."""
    if word in releases():
        return [releases()[word]]
    return [
        one
        for one in releases().values()
        if any(word.lower() in text.lower() for text in (one.name, one.what, one.repo, *one.sites))
    ]


def table(found: Iterable[Release]) -> str:
    """One line a release."""
    rows = [
        (
            one.name,
            str(len(one.saes)),
            _sites(one.sites),
            _range([sae.d_sae for sae in one.saes]),
            one.architecture,
            _range([sae.l0 for sae in one.saes]),
            _range([sae.explained_variance for sae in one.saes]),
        )
        for one in found
    ]
    return _columns([HEADINGS, *rows])


def detail(release: Release) -> str:
    """Everything about one, and how to load it."""
    known = {
        "repository": release.repo,
        "model": release.model,
        "processing": _either(release.centred, "writing weights centred", "as it is"),
        "architecture": release.architecture,
        "context": release.context_size and f"{release.context_size} tokens",
        "begins with": _either(release.prepend_bos, "the end-of-text token", "text"),
        "text": release.dataset,
        "reference": release.reference,
        "note": release.note,
    }
    facts = [(label, str(value or "not known")) for label, value in known.items()]
    saes = [
        (sae.id, sae.site, *map(_figure, figures))
        for sae in release.saes
        for figures in [(sae.d_sae, sae.l0, sae.explained_variance, sae.ce_increase)]
    ]
    headings = ("id", "site", "d_sae", "L0", "EV", "loss +")
    first = release.saes[0]
    parts = [
        f"{release.name}: {release.what}\n",
        _columns([fact for fact in facts if fact[0] != "note" or release.note]),
        f"\n{_columns([headings, *saes])}\n",
        f'sae = load_sae("{release.name}/{first.id}")',
    ]
    if len(release.sites) == len(release.saes):  # otherwise they cannot be opened together
        parts.append(f'saes = load_saes("{release.name}", layers=[{layer_of(first.site)}])')
    return "\n".join(parts)


def _either(fact: bool | None, if_so: str, if_not: str) -> str | None:
    return None if fact is None else if_so if fact else if_not


def _sites(sites: Sequence[str]) -> str:
    """Sites in short: hook_resid_pre 0-11, hook_resid_post 11."""
    layers: dict[str, list[int]] = {}
    for site in sites:
        _, layer, name = site.split(".", 2)
        layers.setdefault(name, []).append(int(layer))
    return ", ".join(f"{name} {_numbers(each)}" for name, each in layers.items())


def _numbers(layers: Sequence[int]) -> str:
    together = list(layers) == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1
    return f"{layers[0]}-{layers[-1]}" if together else ",".join(map(str, layers))


def _range(values: Iterable[int | float | None]) -> str:
    known = sorted({value for value in values if value is not None})
    if not known:
        return ""
    return _figure(known[0]) + (f" to {_figure(known[-1])}" if len(known) > 1 else "")


def _figure(value: int | float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
