"""SAEs in repositories of the Hugging Face hub, or in folders of them.

    hf:jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre

One request lists a repository. A file comes through the hub's client into its cache when it is
read, and headers of safetensors files come by themselves, so that `inspect_sae` fetches no weights.
With the hub out of reach, what is in the cache is the repository. The hub names large files by
their SHA-256, and its cache keeps them under that name: what is read has to have it.

Limits: model repositories; a listing is that of the moment when the place was opened.
"""

import logging
import re
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import final

from sae_kit.files import describe
from sae_kit.formats.places import MAX_DEPTH, Header, Known, LocalPlace, Place, damaged, refuse
from sae_kit.hub import cached_repositories, explained

PREFIX = "hf:"

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class _Listing:
    commit: str
    names: tuple[str, ...]
    from_cache: bool
    """Whether it has only what was fetched before, because the hub cannot be reached."""


@final
class Repository:
    """A repository at one revision."""

    def __init__(self, repo: str, revision: str | None, *, missing: str) -> None:
        """One that need not exist.

        Args:
            repo: owner/name.
            revision: branch, tag or commit; None is the main branch.
            missing: what to say if there is none.
        """
        self.repo, self.revision, self._missing = repo, revision, missing

    @cached_property
    def listing(self) -> _Listing:
        """All files and the commit.

        Raises:
            ValueError: no such repository or revision, or a file name that leads out of it.
            ConnectionError: the hub is out of reach and nothing is in the cache.
        """
        from huggingface_hub import HfApi, errors

        with self._asking():
            try:
                info = HfApi().model_info(self.repo, revision=self.revision)
            except (OSError, errors.HTTPError) as error:
                mistakes = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
                snapshot = None if isinstance(error, mistakes) else self._snapshot()
                if snapshot is None:
                    raise
                log.warning(
                    "the hub cannot be reached; of %s there is what was fetched before", self.repo
                )
                return _Listing(snapshot.name, LocalPlace(snapshot).names(), True)
        names = [file.rfilename for file in info.siblings or ()]
        _check_names(self.repo, names)
        return _Listing(info.sha or "", tuple(sorted(filter(_is_visible, names))), False)

    def fetch(self, name: str) -> Path:
        """A file on this disk. Raises as `listing`, and ValueError if it is not the hub's."""
        from huggingface_hub import hf_hub_download

        with self._asking():
            # By the revision's name, not the commit: so the cache remembers what the name meant.
            path = Path(hf_hub_download(self.repo, name, revision=self.revision))
        blob = path.resolve()
        if re.fullmatch(r"[0-9a-f]{64}", blob.name) and describe(blob)["sha256"] != blob.name:
            what = "is damaged: its SHA-256 is not the one that the hub has"
            refuse(f"{PREFIX}{self.repo}/{name}", what, f"delete {blob} and open it again")
        return path

    def cached(self, name: str) -> Path | None:
        """A file on this disk, if it was fetched before."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, name, revision=self.listing.commit)
        return Path(found) if isinstance(found, str) else None

    def header(self, name: str) -> Header:
        """The header of a safetensors file, without the rest. Raises as `listing`."""
        from huggingface_hub import HfApi, errors

        malformed = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
        with self._asking():
            try:
                found = HfApi().parse_safetensors_file_metadata(
                    self.repo, name, revision=self.listing.commit
                )
                return {key: (one.dtype, tuple(one.shape)) for key, one in found.tensors.items()}
            except (errors.SafetensorsParsingError, *malformed) as error:
                damaged(f"{PREFIX}{self.repo}/{name}", error)

    def _snapshot(self) -> Path | None:
        """The folder with what the cache has of the revision."""
        from huggingface_hub import errors, scan_cache_dir

        wanted = self.revision or "main"
        try:
            repos = scan_cache_dir().repos
        except errors.CacheNotFound:
            return None
        for revision in (r for one in repos if one.repo_id == self.repo for r in one.revisions):
            if wanted == revision.commit_hash or wanted in revision.refs:
                return revision.snapshot_path
        return None

    def _asking(self) -> AbstractContextManager[None]:
        return explained(
            self.repo,
            self.revision,
            field="source",
            missing=self._missing,
            instead=lambda: (
                "What works without the hub: a local folder; repositories in the cache: "
                f"{cached_repositories()}"
            ),
        )


@final
class HubPlace(Place):
    """A folder or file of a repository."""

    def __init__(
        self, repository: Repository, path: str = "", known: Mapping[str, Known] | None = None
    ) -> None:
        """A path in the repository; "" is all of it.

        Args:
            repository: where it is.
            path: with slashes.
            known: of a release, its SAEs' paths and what it knows of each; nothing else is seen.
        """
        self._repository, self._path, self._known = repository, path, known

    @property
    def where(self) -> str:
        """See Place.where."""
        return f"{PREFIX}{self._repository.repo}" + (f"/{self._path}" if self._path else "")

    def names(self) -> tuple[str, ...]:
        """See Place.names."""
        names = self._repository.listing.names
        if self._path in names:
            return (PurePosixPath(self._path).name,)
        if self._known is not None:
            names = _of_release(names, self._known)
        prefix = f"{self._path}/" if self._path else ""
        below = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
        return tuple(name for name in below if name.count("/") < MAX_DEPTH)

    def at(self, name: str) -> "HubPlace":
        """See Place.at."""
        path = "/".join(part for part in (self._path, name) if part)
        return HubPlace(self._repository, path, self._known)

    def beside(self, name: str) -> "HubPlace | None":
        """See Place.beside."""
        folder, slash, _ = self._path.rpartition("/")
        other = f"{folder}{slash}{name}"
        found = self._path and other in self._repository.listing.names
        return HubPlace(self._repository, other, self._known) if found else None

    def path(self, name: str) -> Path:
        """See Place.path."""
        return self._repository.fetch(self._full(name))

    def header(self, name: str) -> Header:
        """See Place.header."""
        listing = self._repository.listing
        if not self.has(name) and not listing.from_cache:
            self.lacks(name, "give a folder that holds weights too")
        full = self._full(name)
        if listing.from_cache or self._repository.cached(full):
            return LocalPlace(self.path(name)).header(PurePosixPath(full).name)
        return self._repository.header(full)

    def known(self) -> Known:
        """See Place.known."""
        said = (self._known or {}).get(self._path, Known())
        commit = self._repository.listing.commit
        origin = {"repo": self._repository.repo, "commit": commit, "path": self._path}
        return replace(said, origin=origin)

    def _full(self, name: str) -> str:
        """The path of a file in the repository."""
        if self._path in self._repository.listing.names:
            return self._path
        return f"{self._path}/{name}" if self._path else name


def _of_release(names: Collection[str], paths: Collection[str]) -> tuple[str, ...]:
    """The files that are one of these, in a folder of these, or beside one under its stem."""
    stems = [PurePosixPath(path).with_suffix("").as_posix() for path in paths if path in names]
    return tuple(
        name
        for name in names
        if any(name == path or name.startswith(f"{path}/") for path in paths)
        or any(name.startswith(stem) and "/" not in name[len(stem) :] for stem in stems)
    )


def _is_visible(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))


def _check_names(repo: str, names: Collection[str]) -> None:
    """Refuse a repository with a name that leads out of the folder it is unpacked in."""
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if ".." in parts or name.startswith(("/", "\\")) or not name:
            refuse(f"{PREFIX}{repo}", f"has a file named {name!r}", "it is not to be trusted")
