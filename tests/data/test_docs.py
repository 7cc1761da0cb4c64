"""The docstring corpus: what is read, what is left out, and that held-out text is not in train."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sae_kit.data import docs
from sae_kit.data.docs import (
    MIN_CHARS,
    DocsConfig,
    DocstringCorpus,
    docstring_corpus,
    docstrings_of_source,
    installed_packages,
    is_heldout,
    scan,
)
from sae_kit.dist import World
from sae_kit.models.tokenizer import Tokenizer

LONG = (
    "This text is long enough to be a document of its own, which takes at least eighty characters."
)


def module(*texts: str) -> str:
    """Source of a module with one documented function for each text."""
    return "".join(f'def f{i}():\n    """{text}"""\n' for i, text in enumerate(texts))


def write(folder: Path, sources: dict[str, str]) -> list[tuple[str, Path]]:
    for name, source in sources.items():
        (folder / name).write_text(source, encoding="utf-8")
    return [(name, folder / name) for name in sources]


def names(heldout: bool, n: int) -> list[str]:
    """Module names of which split they are is known."""
    return [m for m in (f"m{i}.py" for i in range(3000)) if is_heldout(m) == heldout][:n]


def test_docstrings_are_found_wherever_they_can_stand() -> None:
    source = f'''"""module. {LONG}"""
class A:
    """class. {LONG}

    Args:
        indented
    """
    def f(self):
        """method. {LONG}"""
        def inner():
            """inner. {LONG}"""
try:
    async def g():
        """async. {LONG}"""
except ImportError:
    def h():
        """handler. {LONG}"""
if True:
    pass
else:
    def k():
        """else. {LONG}"""
        x = """no docstring. {LONG}"""
def short():
    """Too short."""
'''
    found = docstrings_of_source(source)
    kinds = ["module", "class", "method", "inner", "async", "handler", "else"]
    assert [doc.split(".")[0] for doc in found] == kinds
    assert found[1] == f"class. {LONG}\n\nArgs:\n    indented"  # cleaned of the common indentation


def test_lone_surrogates_do_not_survive() -> None:
    (doc,) = docstrings_of_source(f'"""\\ud800{LONG}"""')
    assert doc == LONG


def test_min_length_counts_cleaned_characters() -> None:
    exact = "x" * MIN_CHARS
    assert docstrings_of_source(f'"""  {exact}  """') == [exact]
    assert docstrings_of_source(f'"""  {exact[1:]}  """') == []


def test_duplicates_are_kept_once_whatever_their_white_space(tmp_path: Path) -> None:
    a, b = names(heldout=False, n=2)
    respaced = LONG.replace(" ", "\n    ")
    corpus = scan(write(tmp_path, {a: module(LONG, LONG + " b"), b: module(respaced)}), {})
    assert sorted(corpus.train) == sorted([LONG, LONG + " b"])


@pytest.mark.parametrize("train_first", [True, False])
def test_text_in_both_splits_is_train_only(tmp_path: Path, train_first: bool) -> None:
    # Which of the two files is read first must not matter, so both orders of names are tried.
    (heldout,) = names(heldout=True, n=1)
    train = next(m for m in names(heldout=False, n=900) if (m < heldout) == train_first)
    sources = {train: module(LONG), heldout: module(LONG, LONG + " only here")}
    corpus = scan(write(tmp_path, sources), {})
    assert corpus.train == (LONG,)
    assert corpus.heldout == (LONG + " only here",)


def test_about_two_percent_of_the_files_are_held_out() -> None:
    share = sum(is_heldout(f"package/module_{i}.py") for i in range(20_000)) / 20_000
    assert 0.016 < share < 0.024


def test_unreadable_files_are_counted(tmp_path: Path) -> None:
    files = write(tmp_path, {"a.py": module(LONG), "b.py": "def ("})
    (tmp_path / "c.py").write_bytes(b'"""\xff"""')
    files += [("c.py", tmp_path / "c.py"), ("gone.py", tmp_path / "gone.py")]
    corpus = scan(files, {})
    assert (corpus.n_files, corpus.n_unreadable) == (4, 3)


def test_order_does_not_depend_on_the_other_files(tmp_path: Path) -> None:
    files = write(tmp_path, {name: module(f"{LONG} {name}") for name in names(False, 30)})
    whole = scan(files, {}).train
    some = scan(files[::2], {}).train
    assert [doc for doc in whole if doc in some] == list(some)
    assert scan(files[::-1], {}).train == whole
    assert sorted(whole) != list(whole)


def test_our_own_dependencies_and_nothing_else() -> None:
    packages = installed_packages()
    assert {"torch", "numpy", "tokenizers", "safetensors"} <= set(packages)
    assert "sympy" in packages  # of torch: the closure, not only the roots
    assert not {"pytest", "ruff", "mypy", "transformers"} & set(packages)


def test_test_folders_and_vendored_code_are_skipped() -> None:
    unwanted = ["numpy/tests/x.py", "a/test/b.py", "a/test_b.py", "pip/_vendor/x.py", "../bin/x.py"]
    assert [name for name in unwanted if docs._wanted(name)] == []
    assert docs._wanted("numpy/testing/__init__.py")


@pytest.fixture
def small_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """One package of 200 files; counts the scans."""
    files = write(tmp_path, {f"n{i}.py": module(f"{LONG} Number {i}.") for i in range(200)})
    scans: list[int] = []

    def counted(files: list[tuple[str, Path]], versions: dict[str, str]) -> DocstringCorpus:
        scans.append(len(files))
        return scan(files, versions)

    monkeypatch.setattr(docs, "scan", counted)
    monkeypatch.setattr(docs, "installed_packages", dict)
    monkeypatch.setattr(docs, "_stdlib_files", lambda: files)
    docstring_corpus.cache_clear()
    yield scans
    docstring_corpus.cache_clear()


def test_the_corpus_is_scanned_once(small_installation: list[int], own_cache: Path) -> None:
    first = docstring_corpus()
    docstring_corpus.cache_clear()
    assert docstring_corpus() == first
    assert small_installation == [200]
    (kept,) = (own_cache / "docs").iterdir()
    assert set(json.loads(kept.read_text(encoding="utf-8"))) == set(vars(first))
    assert "200 files" in first.summary()


@pytest.mark.usefixtures("small_installation")
def test_splits_are_served_as_contexts(tiny_tokenizer: Tokenizer) -> None:
    config = DocsConfig(context_size=16, prepend_bos=False)
    corpus = docstring_corpus()
    for split, documents in (("train", corpus.train), ("heldout", corpus.heldout)):
        source = config.open(tiny_tokenizer, split=split, world=World(0, 1), seed=0)
        lengths = [len(tiny_tokenizer.encode(doc)) + 1 for doc in documents]
        assert source.n_tokens == sum(lengths)
        assert len(next(source)) == 16
