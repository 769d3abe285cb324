"""Imports go one way, and Triton's own module stays in the adapters."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "instantid"
EDGE = {"contract", "errors", "request", "profile", "styles"}
ALLOWED = {
    "contract": set(),
    "errors": set(),
    "styles": {"contract"},
    "profile": {"contract", "styles"},
    "settings": set(),
    "decoding": {"contract", "errors"},
    "photos": {"contract", "errors", "decoding"},
    "checks": {"contract", "errors", "profile"},
    "request": {"contract", "errors", "profile", "photos", "checks"},
    "answer": {"contract", "request"},
    "faces": EDGE | {"photos", "faces"},
    "models": EDGE | {"engine", "settings", "models"},
    "engine": {"errors", "engine"},
    "serving": EDGE | {"settings", "photos", "answer", "faces", "models", "engine", "serving"},
}
HEAVY = {"torch", "diffusers", "transformers", "cv2", "PIL", "onnxruntime"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    if layer(path) == "__init__":
        return
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("instantid.")}
    known = set(ALLOWED)
    assert ours & known <= ALLOWED[layer(path)] | {layer(path)}


def test_triton_is_imported_by_adapters_only():
    backend = ROOT / "build_tools" / "embedded" / "onnxruntime_backend"
    for path in [*ROOT.glob("src/**/*.py"), *ROOT.glob("client/**/*.py"), *ROOT.glob("build_tools/**/*.py")]:
        if "triton_python_backend_utils" in set(imported(path)):
            assert path.is_relative_to(SOURCE / "serving") or path.is_relative_to(backend), path


def test_the_engine_knows_neither_torch_nor_diffusers():
    for path in (SOURCE / "engine").glob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & HEAVY, path


def test_the_client_needs_nothing_of_ours_and_nothing_heavy():
    """Pillow only where a caller's image is one."""
    for path in (ROOT / "client").rglob("*.py"):
        names = {name.split(".")[0] for name in imported(path)}
        assert not names & (HEAVY - {"PIL"} | {"instantid", "build_tools", "loadtest", "miniature"}), path


def test_adapters_in_the_model_repository_only_import():
    for path in (ROOT / "model_repository").glob("*/*/model.py"):
        kinds = [type(node) for node in ast.parse(path.read_text()).body]
        assert kinds == [ast.Expr, ast.ImportFrom, ast.Assign], path


def test_opentelemetry_is_imported_only_where_spans_are_made():
    """Inside functions: a server without a collector, and an application without spans, never load it."""
    found = {}
    for path in [*SOURCE.rglob("*.py"), *(ROOT / "client").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        everywhere = [name for name in imported(path) if name.startswith("opentelemetry")]
        at_the_top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not [node for node in at_the_top if "opentelemetry" in ast.unparse(node)], path
        if everywhere:
            found[path.name] = everywhere
    assert set(found) == {"spans.py", "_core.py"}
