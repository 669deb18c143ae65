"""The rules of ``docs/architecture.md`` (who may import whom), held against the real imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from vall_e.cli import ABOVE

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("nn", "backbones", "models", ("generation", "training"), "serving", "cli")  # never upward
LEAVES = ("config", "decoding", "family", "fields", "preparation", "regimen", "registry", "tasks")
UPWARD = re.compile(r"(stages|pipelines)(\.\w+)+")
OPTIONAL = ("flash_attn", "xformers", "sageattention", "mamba_ssm", "nemo", "ray", "deepspeed", "gradio", "vocos")


def _files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def _exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


@cache
def imports(path: Path, *, top_level: bool = False) -> tuple[str, ...]:
    """Modules that a file imports, inside functions as well, but not those only for type checkers."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if top_level and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    package = _module(path).split(".")[: None if path.name == "__init__.py" else -1]
                    base = ".".join([*package[: len(package) - child.level + 1], *filter(None, [child.module])])
                inner = [f"{base}.{alias.name}" for alias in child.names]
                yield from [name if _exists(name) else base for name in inner] if base.startswith("vall_e") else [base]
            if not isinstance(child, ast.expr):
                yield from walk(child)

    return tuple(walk(ast.parse(path.read_text(encoding="utf-8"))))


def _uses(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for name in imports(path))


def _rank(name: str) -> int | None:
    parts = name.split(".")
    if parts[0] != "vall_e" or len(parts) < 2:
        return None
    return next(
        (i for i, layer in enumerate(LAYERS) if parts[1] in (layer if isinstance(layer, tuple) else (layer,))), None
    )


@pytest.mark.parametrize("path", _files("vall_e"), ids=_module)
def test_layers_import_downward_only(path):
    mine = _rank(_module(path))
    for name in imports(path):
        assert name.split(".")[0] not in ("stages", "pipelines", "tests"), f"{path}: {name} is above the library"
        theirs = _rank(name)
        if mine is not None and theirs is not None:
            assert theirs <= mine, f"{_module(path)} imports {name}, which is above it"
            if theirs == mine and isinstance(LAYERS[mine], tuple):
                assert name.split(".")[1] == _module(path).split(".")[1], f"{_module(path)} imports {name} beside it"


@pytest.mark.parametrize("path", _files("vall_e/sampling"), ids=_module)
def test_sampling_knows_only_torch(path):
    allowed = (
        "__future__",
        "torch",
        "math",
        "collections",
        "dataclasses",
        "typing",
        "vall_e.sampling",
    )
    for name in imports(path):
        assert name.startswith(allowed), f"{path}: sampling must not import {name}"


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_import_nothing_of_the_house(name):
    path = ROOT / "vall_e" / f"{name}.py"
    if path.is_file():
        leaves = tuple(f"vall_e.{leaf}" for leaf in LEAVES)
        mine = [module for module in imports(path) if module not in leaves]
        assert not [module for module in mine if module.startswith(("vall_e", "torch", "stages", "pipelines"))]


@pytest.mark.parametrize(
    "package, home",
    [("mlflow", ["stages/"]), ("prefect", ["pipelines/"]), ("dvc", ["pipelines/"])],
)
def test_each_orchestrator_has_its_place(package, home):
    users = [p.relative_to(ROOT).as_posix() for p in _files("vall_e", "stages", "pipelines") if _uses(p, package)]
    assert users, f"nothing imports {package}: is this test still about the real code?"
    assert [user for user in users if not user.startswith(tuple(home))] == []


def test_the_library_names_modules_above_it_in_one_table_only():
    """``cli.ABOVE``: whole commands that are handed over when they are given. Nothing else reaches up by a string."""
    above = {name: path for path in _files("vall_e") for name in _strings(path) if UPWARD.fullmatch(name)}
    assert above == {module: ROOT / "vall_e" / "cli.py" for module, _ in ABOVE.values()}
    for module in above:
        assert _exists(module) and "main" in (ROOT / module.replace(".", "/")).with_suffix(".py").read_text("utf-8")


def _strings(path: Path) -> Iterator[str]:
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return (node.value for node in tree if isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_stages_do_not_import_pipelines():
    assert [str(path) for path in _files("stages") if _uses(path, "pipelines")] == []


@pytest.mark.parametrize("package", OPTIONAL)
def test_an_optional_package_is_imported_in_one_place_and_never_at_import(package):
    users = [path for path in _files("vall_e", "stages", "pipelines") if _uses(path, package)]
    assert len(users) <= 1, f"{package} is imported by {users}"
    for path in users:
        assert not any(name.split(".")[0] == package for name in imports(path, top_level=True))


def test_importing_the_library_has_no_side_effects_on_the_environment():
    """No module sets environment variables or global configuration when it is imported."""
    for path in _files("vall_e"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            text = ast.unparse(node)
            if isinstance(
                node, ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign | ast.Import | ast.ImportFrom
            ):
                continue
            assert "environ" not in text and "set_num_threads" not in text, f"{path}: {text}"
