"""The embedded corpus: docstrings of the standard library and of the toolkit's own dependencies.

Megabytes of real English that every installation has, so nothing has to be downloaded to see the
toolkit work. Source files are parsed with `ast`; nothing is imported. Only the packages the toolkit
itself depends on are read (the closure of `ROOTS`), so that two machines with the same versions
have the same corpus whatever else is installed on them.

Files are split into train and heldout, not docstrings: near-copies live side by side in one file
and would leak. A docstring that occurs in both is left to train.
"""

import ast
import gc
import hashlib
import importlib.metadata
import json
import logging
import re
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from inspect import cleandoc
from pathlib import Path, PurePosixPath
from typing import final

from packaging.requirements import Requirement
from tqdm import tqdm

from sae_kit.data.packing import PackedContexts, fingerprint_of, tokenise_once
from sae_kit.data.tokens import ContextStream, Split, TokensConfig, cache_folder
from sae_kit.dist import World
from sae_kit.files import taking_turns, write_atomic
from sae_kit.models.tokenizer import Tokenizer

ROOTS = (
    "datasets",
    "einops",
    "huggingface_hub",
    "hydra-core",
    "jaxtyping",
    "matplotlib",
    "numpy",
    "safetensors",
    "tokenizers",
    "torch",
    "tqdm",
    "wandb",
)
"""Distributions whose dependency closure is read, together with the standard library."""

MIN_CHARS = 80
"""Shorter docstrings are left out: a line such as "Return self+value." is hardly a document."""

HELDOUT_PERCENT = 2

# Only there on machines with a certain accelerator; the corpus should not depend on that.
_PLATFORM_PACKAGES = re.compile(r"nvidia-|cuda-|triton|pytorch-triton")
_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "_vendor", "vendor", "site-packages"})
_RULES = 1  # raised when this module would extract something else from the same files

_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class DocsConfig(TokensConfig, kind="docs"):
    """The docstrings of the installed packages."""

    def open(self, tokenizer: Tokenizer, *, split: Split, world: World, seed: int) -> ContextStream:
        """The source at its start."""
        contexts = self.contexts(tokenizer, split=split, seed=seed)
        return ContextStream(contexts, world=world, config=self)

    def contexts(self, tokenizer: Tokenizer, *, split: Split, seed: int) -> PackedContexts:
        """The contexts by index."""
        corpus = docstring_corpus()
        documents = corpus.train if split == "train" else corpus.heldout
        name = f"{split} docstrings of the installed packages"
        content = fingerprint_of("docs", documents)
        tokens = tokenise_once(documents, content=content, name=name, tokenizer=tokenizer)
        bos = tokenizer.eot_id if self.prepend_bos else None
        return PackedContexts(tokens, context_size=self.context_size, bos=bos, seed=seed)


@final
@dataclass(frozen=True)
class DocstringCorpus:
    """The extracted text and how it came about."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]
    versions: dict[str, str]
    """Package -> version, "python" among them."""
    n_files: int
    n_unreadable: int
    """Files skipped: not UTF-8, or not this Python's syntax."""
    seconds: float
    """Wall-clock seconds the scan took (when it was made, if it comes from the cache)."""

    def summary(self) -> str:
        """One line for the log."""
        train, heldout = (sum(map(len, docs)) / 1e6 for docs in (self.train, self.heldout))
        return (
            f"docstring corpus: {len(self.train):,} train documents ({train:.1f} M chars), "
            f"{len(self.heldout):,} held out ({heldout:.2f} M chars), from {self.n_files:,} "
            f"files of {len(self.versions)} packages, {self.n_unreadable} unreadable, "
            f"scanned in {self.seconds:.0f} s"
        )


@lru_cache(maxsize=1)
def docstring_corpus() -> DocstringCorpus:
    """The corpus of this installation, scanned once per set of package versions and then cached."""
    packages = installed_packages()
    versions = {name: dist.version for name, dist in packages.items()}
    versions["python"] = ".".join(map(str, sys.version_info[:3]))
    key = hashlib.sha256(json.dumps([_RULES, versions], sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "docs" / f"{key}.json"
    if path.is_file():
        return _read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with taking_turns(path):
        if path.is_file():  # by now
            return _read(path)
        _log.info("reading the docstrings of %d packages (once; kept in %s)", len(versions), path)
        files = [*_stdlib_files(), *(f for n, d in packages.items() for f in _package_files(n, d))]
        corpus = scan(files, versions)
        write_atomic(path, json.dumps(asdict(corpus)))
    _log.info(corpus.summary())
    return corpus


def scan(files: list[tuple[str, Path]], versions: dict[str, str]) -> DocstringCorpus:
    """Extract, deduplicate and split the docstrings of `files` = (module path, file) pairs.

    Documents come out in the order of their hashes: fixed, mixed, and the same whichever other
    files were read.
    """
    start = time.perf_counter()
    seen: dict[bytes, tuple[str, bool]] = {}
    n_unreadable = 0
    with _without_garbage_collection():
        for module, path in tqdm(sorted(files), desc="docstrings", unit="file", disable=None):
            docs = _docstrings_of(path)
            if docs is None:
                n_unreadable += 1
                continue
            heldout = is_heldout(module)
            for doc in docs:
                digest = hashlib.sha256(" ".join(doc.split()).encode()).digest()
                if digest not in seen or (seen[digest][1] and not heldout):
                    seen[digest] = (doc, heldout)
    ordered = [seen[digest] for digest in sorted(seen)]
    return DocstringCorpus(
        train=tuple(doc for doc, heldout in ordered if not heldout),
        heldout=tuple(doc for doc, heldout in ordered if heldout),
        versions=versions,
        n_files=len(files),
        n_unreadable=n_unreadable,
        seconds=round(time.perf_counter() - start, 1),
    )


def is_heldout(module: str) -> bool:
    """Whether the file `module` (such as "numpy/linalg/_linalg.py") is held out."""
    return int.from_bytes(hashlib.sha256(module.encode()).digest()[:8]) % 100 < HELDOUT_PERCENT


def installed_packages() -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions in the dependency closure of `ROOTS`, by name, sorted."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = list(ROOTS)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found or _PLATFORM_PACKAGES.match(name):
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return dict(sorted(found.items()))


def docstrings_of_source(source: str) -> list[str]:
    """Cleaned docstrings of a module's source, in order, the short ones left out.

    Raises SyntaxError or ValueError where the source does not parse.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(source)
    docs = [cleandoc(doc).strip() for doc in _raw_docstrings(tree)]
    # Unpaired surrogates (from "\ud800" in a literal) cannot be written as UTF-8.
    docs = [doc.encode("utf-8", "ignore").decode() for doc in docs]
    return [doc for doc in docs if len(doc) >= MIN_CHARS]


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    # Syntax trees are millions of objects without cycles; looking for some doubles the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _docstrings_of(path: Path) -> list[str] | None:
    try:
        return docstrings_of_source(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _raw_docstrings(node: ast.AST) -> Iterator[str]:
    # Only statements can hold docstrings; `ast.walk` would visit every expression too.
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        doc = ast.get_docstring(node, clean=False)
        if doc:
            yield doc
    for block in ("body", "orelse", "handlers", "finalbody"):
        children = getattr(node, block, None)
        if isinstance(children, list):
            for child in children:
                yield from _raw_docstrings(child)


def _stdlib_files() -> list[tuple[str, Path]]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    return [(f"python/{name}", folder / name) for name in paths if _wanted(name)]


def _package_files(
    package: str, dist: importlib.metadata.Distribution
) -> Iterator[tuple[str, Path]]:
    for file in dist.files or []:
        if file.suffix == ".py" and _wanted(file.as_posix()):
            yield f"{package}/{file.as_posix()}", Path(str(dist.locate_file(file)))


def _wanted(name: str) -> bool:
    path = PurePosixPath(name)
    skipped = _SKIPPED_FOLDERS.intersection(path.parts) or ".." in path.parts
    return not skipped and not path.name.startswith("test_")


def _read(path: Path) -> DocstringCorpus:
    fields = json.loads(path.read_text(encoding="utf-8"))
    return DocstringCorpus(
        **{**fields, "train": tuple(fields["train"]), "heldout": tuple(fields["heldout"])}
    )
