"""From what a person types to the place where SAEs lie.

A source is one of these, looked for in this order:

    outputs/train/<run>                        a folder or file here
    gpt2-small-res-jb                          a release (formats/releases.yaml): all its SAEs
    gpt2-small-res-jb/blocks.8.hook_resid_pre  one of them
    owner/name, owner/name/folder              a repository of the Hugging Face hub, or a part of it
    hf:owner/name/folder                       the same, looked for nowhere else

What exists here is never looked for elsewhere, and a `Path` is a path.
"""

from pathlib import Path

from sae_kit.config import nearest
from sae_kit.formats.hub import PREFIX, HubPlace, Repository
from sae_kit.formats.places import LocalPlace, Place
from sae_kit.formats.releases import Release, releases
from sae_kit.hub import is_repository_id


def open_source(source: str | Path, revision: str | None = None) -> Place:
    """The place that a source names.

    Args:
        source: see the module's docstring.
        revision: branch, tag or commit of a repository; None is its main branch.

    Raises:
        ValueError: there is no such place, or a revision of what is not on the hub.
        ConnectionError: it is on the hub, not in the cache, and the hub cannot be reached.
    """
    text = str(source)
    if not text:
        raise ValueError("source: is empty; give a folder, a file, a release or a repository")
    path = Path(source).expanduser()
    if path.exists() and not text.startswith(PREFIX):
        if revision is not None:
            raise ValueError(f"revision: {revision!r} has no meaning for {source}, which is here")
        return LocalPlace(path)
    name, *rest = text.removeprefix(PREFIX).split("/")
    if isinstance(source, str) and not text.startswith(PREFIX) and name in releases():
        return _of_release(releases()[name], "/".join(rest), revision)
    if isinstance(source, Path) or not is_repository_id([name, *rest][:2]):
        raise ValueError(
            f"{source}: no such folder; give the local folder of a saved SAE{_others(text)}"
        )
    repo, folder = f"{name}/{rest[0]}", "/".join(part for part in rest[1:] if part)
    missing = f"the hub has no public repository {repo!r}"
    if not text.startswith(PREFIX):
        missing = f"there is no local folder {text!r}, and {missing}{_others(text)}"
    root = HubPlace(Repository(repo, revision, missing=missing))
    place = root.at(folder)
    if not place.names():
        raise ValueError(_absent(folder, root))
    return place


def _of_release(release: Release, sae_id: str, revision: str | None) -> HubPlace:
    """All of a release, or one SAE of it."""
    saes = {one.id: one for one in release.saes}
    if sae_id and sae_id not in saes:
        close = nearest(sae_id, saes) or list(saes)[:3]
        raise ValueError(
            f"{release.name}: has no SAE {sae_id!r}; it has {len(saes)}, such as "
            f"{', '.join(close)}; python -m sae_kit.releases {release.name} lists them"
        )
    missing = f"the hub has no public repository {release.repo!r} (of {release.name})"
    place = HubPlace(
        Repository(release.repo, revision, missing=missing), known=release.known_by_path()
    )
    return place.at(saes[sae_id].path) if sae_id else place


def _others(text: str) -> str:
    """What else could be meant."""
    close = nearest(text.split("/")[0], releases())
    names = f" (perhaps {', '.join(close)})" if close else ""
    return f", a release{names} of those that python -m sae_kit.releases lists, or hf:owner/name"


def _absent(folder: str, root: Place) -> str:
    """What to say of a folder that a repository lacks."""
    paths = {name.rpartition("/")[0] or name for name in root.names()}
    close = nearest(folder, paths) or sorted(paths)[:3]
    return (
        f"{root.where}: has no folder or file {folder!r}; it has {', '.join(close) or 'no files'}"
    )
