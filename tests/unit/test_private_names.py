"""Private names of other packages: none, but in the one file that has each with its reason."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("src", "server", "clients", "integrations", "examples", "benchmarks", "tools")
ALLOWED = "clients/python/lightning_store_client/grpc_internals.py"
OURS = re.compile(r"lightning_store\w*|benchmarks|examples|tests|tools")
PRIVATE_MODULE = re.compile(r"(?P<package>[A-Za-z]\w*)(\.\w+)*\._(?!_)\w+(\.\w+)*")
PRIVATE_NAME = re.compile(r"_(?!_)\w+")

DOCUMENTED = {"_asdict", "_exit", "_fields", "_make", "_replace"}
"""Public in spite of their names: of named tuples, and of os."""


def is_foreign(package: str) -> bool:
    return not OURS.fullmatch(package) and package not in sys.stdlib_module_names


def own_names(trees: dict[str, ast.Module]) -> set[str]:
    """What our own code defines with a leading underscore: an attribute of that name is taken for ours."""
    found: set[str] = set()
    for path, tree in trees.items():
        if path == ALLOWED:
            continue
        for node in ast.walk(tree):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    found.add(name)
                case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                    found.add(name)
                case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                    found.add(name)
    return found


def private_names(tree: ast.Module, own: set[str]) -> Iterator[tuple[int, str]]:
    """Each use of a private name of another package, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), level=0, names=names):
                modules = [f"{module}.{alias.name}" for alias in names]
            case ast.Constant(value=str(text)):
                modules = [text]
            case ast.Attribute(attr=name) if PRIVATE_NAME.fullmatch(name) and name not in own | DOCUMENTED:
                yield node.lineno, name
                continue
            case _:
                continue
        for module in modules:
            found = PRIVATE_MODULE.fullmatch(module)
            if found and is_foreign(found["package"]):
                yield getattr(node, "lineno", 0), module


def sources() -> dict[str, ast.Module]:
    paths = (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text())
        for path in paths
        if not path.is_relative_to(ROOT / "src/lightning_store/v1")
    }


def test_no_other_file_names_anything_private_of_another_package():
    trees = sources()
    own = own_names(trees)
    found = {path: list(private_names(tree, own)) for path, tree in trees.items()}
    named = [name for _, name in found.pop(ALLOWED)]
    assert named == ["grpc._cython.cygrpc", "grpc._channel", "_state", "_channel"]
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import grpc._channel", ["grpc._channel"]),
        ("from grpc._cython import cygrpc", ["grpc._cython.cygrpc"]),
        ("from pydantic import _internal", ["pydantic._internal"]),
        ("import importlib\nimportlib.import_module('grpc._cython.cygrpc')", ["grpc._cython.cygrpc"]),
        ("channel._channel.segregated_call()", ["_channel"]),
        ("getattr(call, 'x')._state", ["_state"]),
        ("import lightning_store._x\nself._mine\nfrom typing import _T\n'a sentence. _Emphasis_'\nx.__dict__", []),
    ],
)
def test_each_way_to_name_one_is_found(source, names):
    assert [name for _, name in private_names(ast.parse(source), {"_mine"})] == names
