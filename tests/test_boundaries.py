"""Imports point upstream only: a room knows the rooms before it and the ground floor, never what comes after."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "llasa"
FLOW = (
    "text",
    "codec",
    "corpus",
    "tokens",
    "packing",
    "model",
    "generation",
    "training",
    "codec_training",
    "evaluation",
    "serving",
)
GROUND_FLOOR = {
    "build",
    "config",
    "entry",
    "explain",
    "errors",
    "paths",
    "pictures",
    "provenance",
    "report_page",
    "sweep",
    "tracking",
    "types",
    "device",
    "audio",
    "audio_headers",
}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name → file of every module of the package."""
    files = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imported_names(source: str, module: str, *, is_package: bool = False) -> list[tuple[int, str]]:
    """(line, dotted name) of every import of the package in a module's source, wherever it stands.

    Imports in functions, under ``TYPE_CHECKING``, relative ones and `importlib.import_module("…")` count.
    `from llasa import corpus` and `from llasa.errors import UserError` both name the thing imported.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found += [(node.lineno, arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return sorted((line, name) for line, name in found if name.split(".")[0] == PACKAGE)


def room(name: str) -> str | None:
    """The room that a dotted name is in; none is the ground floor."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOW else None


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """`line: import` of what a module must not import."""
    here = room(module)
    allowed = FLOW[: FLOW.index(here) + 1] if here else ()
    return [
        f"{line}: imports {name}, which is {'downstream' if here else 'in a room'}"
        for line, name in imported_names(source, module, is_package=is_package)
        if room(name) is not None and room(name) not in allowed
    ]


@pytest.fixture(scope="module")
def tree() -> dict[str, Path]:
    return modules(ROOT)


def test_imports_point_upstream(tree):
    wrong = [
        f"{path.relative_to(ROOT)}:{violation}"
        for module, path in tree.items()
        for violation in violations(path.read_text(), module, is_package=path.name == "__init__.py")
    ]
    assert wrong == []


def test_the_check_sees_the_tree(tree):
    """Against a check that passes because it looks at nothing."""
    assert len(tree) >= 35
    imports = {module: [name for _, name in imported_names(path.read_text(), module)] for module, path in tree.items()}
    assert sum(len(names) for names in imports.values()) >= 90
    between_rooms = {
        (room(module), room(name)) for module, names in imports.items() for name in names if room(module) != room(name)
    }
    assert between_rooms >= {
        ("corpus", "codec"),
        ("packing", "tokens"),
        ("model", "tokens"),
        ("model", "codec"),
        ("training", "corpus"),
        ("training", "packing"),
        ("training", "model"),
        ("generation", "model"),
        ("generation", "codec"),
        ("corpus", None),
    }
    assert "llasa.errors.UserError" in imports["llasa.corpus.store"]


def test_every_folder_is_a_room_and_every_file_beside_them_is_known(tree):
    """A new room or ground-floor file is placed in the flow here before anything can import it."""
    folders = {path.name for path in (ROOT / PACKAGE).iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders <= set(FLOW) | GROUND_FLOOR
    assert {"text", "codec", "corpus", "tokens", "packing", "model", "training", "generation"} <= folders
    files = {module.split(".")[1] for module, path in tree.items() if path.parent == ROOT / PACKAGE and "." in module}
    assert files | (folders - set(FLOW)) == GROUND_FLOOR


def test_the_entry_scripts_only_dispatch():
    """One import for the types, one for `entry`, one for the job; the job's is inside the function."""
    for script in sorted(ROOT.glob("*.py")):
        source = script.read_text()
        top = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert {node.module for node in top} == {"llasa.config", "llasa.entry"}, script.name
        jobs = [name for _, name in imported_names(source, script.stem) if room(name) is not None]
        assert len(jobs) == 1, (script.name, jobs)
        assert len(source.splitlines()) <= 30, script.name
    assert len(list(ROOT.glob("*.py"))) >= 3


def test_the_ground_floor_is_light(tree):
    """`--help` loads config, entry and errors; torch and its like may only be imported inside functions."""
    light = [m for m in tree if m.startswith(f"{PACKAGE}.config")]
    assert len(light) >= 5
    for name in (*light, *(f"{PACKAGE}.{name}" for name in ("entry", "provenance", "tracking", "text"))):
        body = ast.parse(tree[name].read_text()).body
        top = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
        top += [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
        heavy = {"torch", "transformers", "datasets", "numpy", "wandb", "bitsandbytes"}
        assert heavy & {module.split(".")[0] for module in top} == set(), name
        assert top


@pytest.mark.parametrize(
    ("module", "source", "line"),
    [
        ("llasa.codec.codec2", "import llasa.corpus.store", 1),
        ("llasa.codec.codec2", "import numpy\nfrom llasa.corpus.store import Shard", 2),
        ("llasa.corpus.store", "from llasa.tokens.prompt import PromptBuilder", 1),
        ("llasa.corpus.store", "def f():\n    from llasa.tokens import prompt\n", 2),
        ("llasa.corpus.store", "if TYPE_CHECKING:\n    from llasa.packing.plan import PackingPlan", 2),
        ("llasa.corpus.store", "from llasa import tokens", 1),
        ("llasa.corpus.store", "from ..tokens.prompt import PromptBuilder", 1),
        ("llasa.corpus.store", "from .. import tokens", 1),
        ("llasa.tokens.prompt", "try:\n    import llasa.model.llama as llama\nexcept ImportError:\n    pass", 2),
        ("llasa.packing.plan", 'import importlib\nimportlib.import_module("llasa.training.run")', 2),
        ("llasa.model.llama", "from llasa.generation.run import infer, speak", 1),
        ("llasa.generation.run", "from llasa.training import run", 1),
        ("llasa.config", "from llasa.codec.base import CodecSpec", 1),
        ("llasa.entry", "def f():\n    import llasa.codec", 2),
    ],
)
def test_the_check_finds_a_downstream_import(module, source, line):
    found = violations(source, module)
    assert found
    assert all(violation.startswith(f"{line}: imports llasa.") for violation in found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("llasa.corpus.store", "from llasa.codec.base import CodecSpec"),
        ("llasa.corpus.store", "from llasa.corpus.sources import SourceRow"),
        ("llasa.corpus.store", "from .sources import SourceRow\nfrom . import filters\nfrom ..errors import UserError"),
        ("llasa.corpus.store", "from llasa.errors import UserError\nimport llasa.provenance"),
        ("llasa.packing.dataset", "from llasa.tokens.prompt import PromptBuilder"),
        ("llasa.model.llama", "from llasa.tokens.vocabulary import MARKERS\nfrom llasa.codec.base import CodecSpec"),
        ("llasa.training.run", "from llasa.generation import run\nfrom llasa.entry import group_config"),
        ("llasa.entry", "from llasa.config import ROOTS"),
        ("llasa.corpus.store", "import tokens\nfrom packing import plan\nimport llasagna.tokens"),
        ("llasa.corpus.store", '"""from llasa.tokens import prompt"""  # import llasa.model'),
    ],
)
def test_the_check_leaves_upstream_imports_alone(module, source):
    assert violations(source, module) == []


def test_relative_imports_of_a_package_start_in_it():
    """In `llasa/corpus/__init__.py` one dot is llasa.corpus, in `llasa/corpus/store.py` too."""
    assert imported_names("from . import store", "llasa.corpus", is_package=True) == [(1, "llasa.corpus.store")]
    assert imported_names("from . import store", "llasa.corpus.run") == [(1, "llasa.corpus.store")]
    assert violations("from ..model import llama", "llasa.corpus", is_package=True) != []
