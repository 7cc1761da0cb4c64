"""Sites of the toy results, built once."""

from pathlib import Path

import pytest
import toy_results

from sae_kit.viz.browser.build import build


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of both results."""
    folder = tmp_path_factory.mktemp("both") / "site"
    build([toy_results.dashboard(), toy_results.evolution()], folder)
    return folder


@pytest.fixture(scope="session")
def evolved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of feature evolution alone."""
    folder = tmp_path_factory.mktemp("evolved") / "site"
    build([toy_results.evolution()], folder)
    return folder


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of a dashboard alone."""
    folder = tmp_path_factory.mktemp("single") / "site"
    build([toy_results.dashboard()], folder)
    return folder
