"""SAEs onto the Hugging Face hub, in the native layout, with a model card.

    push_saes("outputs/train/<run>", "owner/name")

A repository then holds one folder per SAE (`load_sae("owner/name/<site>")`), README.md, and the
run's `evaluation/result.json` if there is one. All of it is one commit; what else the repository
holds stays, and what has the same names is replaced; README.md is about what was pushed last.

Needs a token that may write: run 'hf auth login', or set HF_TOKEN.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sae_kit.formats.base import SAES_FOLDER, inspect_sae, save_sae
from sae_kit.formats.card import model_card
from sae_kit.formats.places import LocalPlace, refuse
from sae_kit.formats.saelens import CONFIG, SPARSITY, WEIGHTS
from sae_kit.hub import is_repository_id
from sae_kit.result import JSON, Result
from sae_kit.sae import SAE

EVALUATION = "evaluation"
"""Folder of a run that has the figures of its SAEs."""


def push_saes(saes: Mapping[str, SAE] | str | Path, repo: str, *, private: bool = False) -> str:
    """Write SAEs into a repository of the hub, which is made if there is none.

    Args:
        saes: a run folder, a folder of SAEs, or one SAE's, in the native layout; or SAEs by site.
        repo: owner/name.
        private: of a repository that is made: whether only its owner sees it.

    Returns:
        The address of the commit.

    Raises:
        ValueError: no SAEs there, or in another layout; a name that is none; no right to write.
        ConnectionError: the hub cannot be reached.
    """
    if not is_repository_id(repo.split("/")):
        raise ValueError(f"repo: {repo!r} is not of the form owner/name")
    if isinstance(saes, str | Path):
        return _push(_files(repo, Path(saes).expanduser()), repo, private=private)
    with TemporaryDirectory() as scratch:
        for site, sae in saes.items():
            if not re.fullmatch(r"[\w.-]+", site) or not site.strip("."):
                raise ValueError(f"saes: {site!r} is no name of a folder; give SAEs by site")
            save_sae(sae, Path(scratch, site), metadata={"hook_name": site, **sae.metadata})
        return _push(_files(repo, Path(scratch)), repo, private=private)


def _files(repo: str, folder: Path) -> dict[str, Path | bytes]:
    """What the repository is to hold, by path there."""
    if not folder.is_dir():
        refuse(folder, "no such folder", "give a run folder or a folder of SAEs")
    root = folder / SAES_FOLDER if (folder / SAES_FOLDER).is_dir() else folder
    place = LocalPlace(root)
    found = sorted(name.rpartition("/")[0] for name in place.names() if _is_weights(name))
    if not found:
        refuse(
            folder,
            f"holds no SAEs in the native layout ({CONFIG}, {WEIGHTS})",
            "open them with load_saes and push these",
        )
    files: dict[str, Path | bytes] = {}
    infos, words = {}, {}
    for name in found:
        one = root / name
        into = name or one.resolve().name
        infos[into] = inspect_sae(one, format="saelens")
        words[into] = str(LocalPlace(one).json(CONFIG).get("architecture"))
        for file in (CONFIG, WEIGHTS, SPARSITY):
            if (one / file).is_file():
                files[f"{into}/{file}"] = one / file
    rows: Sequence[Mapping[str, Any]] = ()
    if (result := folder / EVALUATION / JSON).is_file():
        rows = Result.load(folder / EVALUATION).rows
        files[f"{EVALUATION}/{JSON}"] = result
    files["README.md"] = model_card(repo, infos, words, rows).encode()
    return files


def _is_weights(name: str) -> bool:
    return name.rpartition("/")[2] == WEIGHTS


def _push(files: Mapping[str, Path | bytes], repo: str, *, private: bool) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    additions = [CommitOperationAdd(path, content) for path, content in files.items()]
    n_saes = sum(_is_weights(path) for path in files)
    with _writing(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(
            repo, additions, commit_message=f"{n_saes} SAE{'s' * (n_saes > 1)} from sae_kit"
        )
    return str(commit.commit_url)


@contextmanager
def _writing(repo: str) -> Iterator[None]:
    """Raise the client's errors while it writes as ours."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(f"repo: {repo!r} is no name of a repository ({error})") from error
    except (OSError, errors.HTTPError) as error:
        response = getattr(error, "response", None)
        reason = str(error).splitlines()[0]
        if response is not None and response.status_code in (401, 403):
            raise ValueError(
                f"repo: the hub does not let you write to {repo!r} ({reason}); run 'hf auth login' "
                "with a token that may write, or give a repository of your own"
            ) from error
        raise ConnectionError(
            f"writing to {repo!r} on {huggingface_hub.constants.ENDPOINT} failed: "
            f"{type(error).__name__}: {reason}"
        ) from error
