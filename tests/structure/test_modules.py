"""Every module says what it is, is short enough to read, and has a test where one would look."""

import ast
from pathlib import Path

import pytest

import sae_kit

ROOT = Path(sae_kit.__file__).parent
TESTS = Path(__file__).parents[1]

MAX_LINES = 450

FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
MODULES = [file for file in FILES if Path(file).name != "__init__.py"]


@pytest.mark.parametrize("file", MODULES)
def test_module_has_a_test(file: str) -> None:
    module = Path(file)
    package = module.parent if module.parent.parts else Path("foundation")
    assert (TESTS / package / f"test_{module.name}").is_file()


@pytest.mark.parametrize("file", FILES)
def test_module_has_a_docstring_and_a_readable_length(file: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    assert source.count("\n") < MAX_LINES
    if source:  # an empty __init__.py has nothing to say
        assert ast.get_docstring(ast.parse(source)), f"{file}: says nothing of itself"


def test_there_are_modules_to_look_at() -> None:
    assert {"config.py", "checkpoint.py", "log.py", "maths.py", "result.py"} <= set(MODULES)
