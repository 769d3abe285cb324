"""The house's sizes (issue 14): files, functions and parameters stay small, and one name means one thing."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("src", "client", "build_tools", "miniature", "loadtest")
FILES = [path for folder in (*CODE, "bench", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
MAX_PARAMETERS = 8
ONE_FOR_EACH_FLAG = {"__main__.py: generate", "_flags.py: connection", "__main__.py: run"}
"""Functions of commands whose parameters are the flags."""
SAME_ON_BOTH_SIDES = {"InvalidArgument", "Overloaded", "Cancelled", "Settings"}
"""The client must not import the service: its own error for each of the service's, and its own settings."""
PROTOCOL_AND_ITS_CLASS = {"State"}
"""What the engine asks of a model's state, and SDXL's."""
GENERATED = ROOT / "client" / "instantid_client" / "contract.py"
"""A copy of the service's contract, written by `python -m build_tools configs`."""


@cache
def parsed(path):
    return ast.parse(path.read_text())


def functions(path):
    return [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(function):
    return function.end_lineno - function.lineno + 1


def parameters(function):
    given = function.args
    named = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")]) + bool(given.vararg) + bool(given.kwarg)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_functions_and_parameters_are_small(path):
    assert len(path.read_text().splitlines()) <= 250
    assert [f"{f.name}: {length(f)} lines" for f in functions(path) if length(f) > 60] == []
    many = {f"{path.name}: {f.name}" for f in functions(path) if parameters(f) > MAX_PARAMETERS}
    assert many <= ONE_FOR_EACH_FLAG


def test_functions_of_the_service_are_short():
    lengths = [length(f) for path in FILES if ROOT / "src" in path.parents for f in functions(path)]
    assert median(lengths) <= 8
    assert quantiles(lengths, n=10)[-1] <= 25


def test_a_public_class_has_a_name_of_its_own():
    places = defaultdict(list)
    for path in FILES:
        private = path.name.startswith("_") and not path.name.startswith("__")
        if path.relative_to(ROOT).parts[0] in CODE and path != GENERATED and not private:
            for node in parsed(path).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(str(path.relative_to(ROOT)))
    shared = {name: paths for name, paths in places.items() if len(paths) > 1}
    assert shared.keys() == SAME_ON_BOTH_SIDES | PROTOCOL_AND_ITS_CLASS, shared
