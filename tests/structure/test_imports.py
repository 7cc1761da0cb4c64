"""Who may import whom. The layers are the architecture: a new arrow is a decision, made here."""

import ast
from pathlib import Path

import pytest

import sae_kit

ROOT = Path(sae_kit.__file__).parent

FOUNDATION = {
    "config",
    "dist",
    "checkpoint",
    "files",
    "hub",
    "log",
    "maths",
    "products",
    "result",
    "sorting",
    "state",
    "timing",
}

# A layer may import itself and what stands here, nothing else of ours. "formats.base": that module.
MAY_IMPORT = {
    "foundation": set(),
    "sae": {"foundation"},
    "models": {"foundation"},
    "viz": {"foundation"},
    "data": {"models", "foundation"},
    "formats": {"sae", "foundation"},
    "publish": {"formats", "foundation"},
    "releases": {"formats", "foundation"},
    "train": {"data", "models", "sae", "foundation"},
    "evals": {"data", "models", "sae", "formats.base", "viz", "foundation"},
    "jobs": {"data", "models", "sae", "formats", "train", "evals", "viz", "foundation"},
}

# Modules through which the siblings of a package share; otherwise they do not know one another.
SHARED = {
    "sae": {
        path.stem for path in (ROOT / "sae").glob("*.py") if ', arch="' not in path.read_text()
    },
    "evals": {
        path.stem for path in (ROOT / "evals").glob("*.py") if ', name="' not in path.read_text()
    }
    | {path.parent.name for path in (ROOT / "evals").glob("*/__init__.py")},
}

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
)


class Imports(ast.NodeVisitor):
    """The absolute names a module imports; `lazy` those that it imports inside a function."""

    def __init__(self, source: str) -> None:
        self.names: set[str] = set()
        self.lazy: set[str] = set()
        self._depth = 0
        self.visit(ast.parse(source))

    def _add(self, name: str) -> None:
        (self.lazy if self._depth else self.names).add(name)

    def _visit_function(self, node: ast.AST) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _visit_function

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"line {node.lineno}: relative import; write it out"
        for alias in node.names:
            # `from a.b import c`: c may be a module, so both a.b and a.b.c count
            self._add(f"{node.module}.{alias.name}")

    def visit_Call(self, node: ast.Call) -> None:
        # importlib.import_module("literal") is an import like any other.
        function = node.func
        called = function.attr if isinstance(function, ast.Attribute) else ""
        if called == "import_module" and isinstance(node.args[0], ast.Constant):
            self._add(node.args[0].value)
        self.generic_visit(node)

    @property
    def all(self) -> set[str]:
        return self.names | self.lazy


def read(module: str) -> Imports:
    return Imports((ROOT / Path(*module.split("."))).with_suffix(".py").read_text("utf-8"))


def layer(module: str) -> str:
    top = module.split(".")[0]
    return "foundation" if top in FOUNDATION else top


def ours(names: set[str]) -> set[str]:
    """Those of `names` in the package, without its own name: "sae.ops.top_k"."""
    return {name.removeprefix("sae_kit.") for name in names if name.split(".")[0] == "sae_kit"}


def breaches(module: str, imports: Imports) -> list[str]:
    """What the module imports that its layer may not."""
    found = []
    allowed = MAY_IMPORT[layer(module)] | {layer(module)}
    for name in ours(imports.all):
        package, second = (*name.split("."), "")[:2]
        target = layer(package)
        if package == "sae_kit":
            found.append("sae_kit itself")
        elif target not in allowed and f"{package}.{second}" not in allowed:
            found.append(name)
        elif target in SHARED and target == layer(module):
            siblings = SHARED[target] | {module.split(".")[-1]}
            if second not in siblings and module.split(".")[-1] != "__init__":
                found.append(f"{name} (a sibling)")
    if layer(module) == "evals":
        found += [f"{name} (not lazily)" for name in ours(imports.names) if layer(name) == "viz"]
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_layers(module: str) -> None:
    assert layer(module) in MAY_IMPORT, f"{module}: a new package; give it its place above"
    assert breaches(module, read(module)) == []


@pytest.mark.slow
def test_only_dist_imports_torch_distributed() -> None:
    importers = {
        module
        for module in MODULES
        if any(name.startswith("torch.distributed") for name in read(module).all)
        or "torch.distributed" in (ROOT / Path(*module.split("."))).with_suffix(".py").read_text()
    }
    assert importers == {"dist"}


def test_wandb_is_imported_by_log_alone_and_lazily() -> None:
    def imports_wandb(names: set[str]) -> bool:
        return any(name.split(".")[0] == "wandb" for name in names)

    assert {module for module in MODULES if imports_wandb(read(module).all)} == {"log"}
    assert not imports_wandb(read("log").names)


@pytest.mark.parametrize(
    ("module", "source", "breach"),
    [
        ("sae.topk", "from sae_kit.sae.relu import x", "sae.relu.x (a sibling)"),
        ("sae.topk", "def f():\n    from sae_kit.sae import relu", "sae.relu (a sibling)"),
        ("sae.topk", "from sae_kit.sae.ops import top_k", None),
        ("sae.topk", "import sae_kit.data.tokens", "data.tokens"),
        ("evals.core", "from sae_kit.evals.acdc import x", "evals.acdc.x (a sibling)"),
        ("evals.core", "from sae_kit.evals.base import Evaluation", None),
        ("evals.core", "from sae_kit.formats.base import x", None),
        ("evals.core", "from sae_kit.formats.openai import x", "formats.openai.x"),
        ("evals.core", "from sae_kit.viz import plots", "viz.plots (not lazily)"),
        ("evals.core", "def plot():\n    from sae_kit.viz import plots", None),
        ("evals.core", "from sae_kit.train.loop import x", "train.loop.x"),
        ("train.loop", "from sae_kit import evals", "evals"),
        ("maths", "from sae_kit.models.gpt2 import GPT2", "models.gpt2.GPT2"),
        ("maths", "import importlib\nimportlib.import_module('sae_kit.sae')", "sae"),
        ("result", "from sae_kit.files import write_atomic", None),
        ("data.tokens", "import sae_kit", "sae_kit itself"),
        ("jobs.train", "from sae_kit.evals import core\nfrom sae_kit.train import loop", None),
    ],
)
def test_the_rules_themselves(module: str, source: str, breach: str | None) -> None:
    assert breaches(module, Imports(source)) == ([] if breach is None else [breach])
