"""What users read in place of the client's errors; tests/formats/test_hub.py has the client."""

from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from sae_kit.hub import cached_repositories, explained, is_repository_id


def raised(error: Exception) -> str:
    """The type and text of what is raised for an error."""
    with (
        pytest.raises((ValueError, ConnectionError)) as found,
        explained("o/n", "v1", field="source", missing="no o/n", instead=lambda: "Else: x"),
    ):
        raise error
    assert found.value.__cause__ is error
    return f"{found.type.__name__} {found.value}"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            errors.RevisionNotFoundError,
            "ValueError revision: the hub has no 'o/n' at revision 'v1'",
        ),
        (errors.GatedRepoError, "ValueError source: access to 'o/n' at revision 'v1' has to be a"),
        (errors.RepositoryNotFoundError, "ValueError source: no o/n; for a private one run 'hf a"),
        (errors.HFValidationError, "ValueError source: no o/n; for a private one run 'hf auth lo"),
    ],
)
def test_mistakes_are_value_errors(kind, said):
    error = kind.__new__(kind)
    assert raised(error).startswith(said)


@pytest.mark.parametrize("kind", [OSError, errors.OfflineModeIsEnabled, errors.HTTPError])
def test_outages_are_connection_errors_that_say_what_works(kind):
    said = raised(kind("no route\nadvice"))
    assert said.startswith(
        "ConnectionError 'o/n' at revision 'v1' is not (completely) in the local"
    )
    assert said.endswith(f"failed: {kind.__name__}: no route\nElse: x")


def test_other_errors_are_left_alone():
    with pytest.raises(KeyError), explained("o/n", None, field="", missing="", instead=str):
        raise KeyError


def test_what_is_in_the_cache(monkeypatch):
    kinds = {"o/b": "model", "o/a": "model", "o/c": "dataset"}
    repos = [SimpleNamespace(repo_id=repo, repo_type=kind) for repo, kind in kinds.items()]
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: SimpleNamespace(repos=repos))
    assert cached_repositories() == "o/a, o/b"
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: SimpleNamespace(repos=[]))
    assert cached_repositories() == "none"


def test_ids_are_an_owner_and_a_name():
    assert is_repository_id(["owner", "name"])
    for parts in (["name"], ["a", "b", "c"], ["..", "a"], ["~", "a"], ["", "a"], ["a", ""]):
        assert not is_repository_id(parts)
