"""What goes wrong between here and the Hugging Face hub, in the same words for models and SAEs.

Files come through the hub's own client, `huggingface_hub`, into its own cache, with its progress
bars; HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and the like are its settings. Its many errors become two
here: ValueError for what is wrong with the request, ConnectionError for a hub that is out of reach.

The client is imported when it is needed: it is slow, and what lies on this disk does without.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


def is_repository_id(parts: list[str]) -> bool:
    """Whether these could be the owner and the name of a repository, and no path's parts."""
    return len(parts) == 2 and all(part.strip(".~") for part in parts)


@contextmanager
def explained(
    repo: str, revision: str | None, *, field: str, missing: str, instead: Callable[[], str]
) -> Iterator[None]:
    """Raise the client's errors inside the block as ours.

    Args:
        repo: owner/name.
        revision: branch, tag or commit; None is the main branch.
        field: what the user gave, which messages begin with.
        missing: what to say where there is no such repository.
        instead: says what works without the hub.

    Raises:
        ValueError: the hub has no such repository or revision, or access has to be asked for.
        ConnectionError: the hub cannot be reached, or does not send the files.
    """
    import huggingface_hub
    from huggingface_hub import errors

    where = f"{repo!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"revision: the hub has no {where}") from error
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{field}: access to {where} has to be asked for on the hub; then run 'hf auth login'"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ValueError(f"{field}: {missing}; for a private one run 'hf auth login'") from error
    except (OSError, errors.HTTPError) as error:
        raise ConnectionError(
            f"{where} is not (completely) in the local cache, and fetching it from "
            f"{huggingface_hub.constants.ENDPOINT} failed: {_first_line(error)}\n{instead()}"
        ) from error


def cached_repositories() -> str:
    """The model repositories of which there is something in the cache, or "none"."""
    from huggingface_hub import errors, scan_cache_dir

    try:
        repos = scan_cache_dir().repos
    except errors.CacheNotFound:
        return "none"
    return ", ".join(sorted(r.repo_id for r in repos if r.repo_type == "model")) or "none"


def _first_line(error: BaseException) -> str:
    """The client's own reason, without its advice."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
