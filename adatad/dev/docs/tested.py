"""What the tests run, from the tests themselves: their lists of cases, their parameters and the names in their text."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType

from adatad.errors import UserError
from adatad.resources import PACKAGE

TESTS = PACKAGE.parent / "tests"
SETTING = re.compile(r"(parallel\.engine|train\.precision)=(\w+)")
PRECISIONS = ("fp32", "bf16", "fp16")


@cache
def module_of_tests(name: str) -> ModuleType:
    """Import a module of tests, as "parallel/test_engine_contract". Raises UserError where pytest isn't installed."""
    for folder in (TESTS, TESTS / Path(name).parent):
        # As pytest puts them there.
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(Path(name).name)
    except ImportError as error:
        raise UserError(
            f"{error}: the support matrix is of the tests; bash launch/setup.sh dev installs them"
        ) from None


def parameters(test: FunctionType) -> dict[str, list]:
    """Return the values of each parameter of a test, by the names in its marks; those of several at once as tuples."""
    marks = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return {",".join(mark.args[0]) if isinstance(mark.args[0], tuple) else mark.args[0]: list(mark.args[1])
            for mark in marks}  # fmt: skip


def trained_precisions(engines: list[str]) -> Iterator[tuple[str, str, str, bool]]:
    """Yield (engine, precision, test, refused) for every test of engines that names both. refused: the test is that it
    is an error."""
    for path in sorted((TESTS / "parallel").glob("test_*.py")):
        tree = ast.parse(path.read_text())
        constants = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for test in (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")):
            words = set(_texts(test, constants))
            said = {found for word in words for found in SETTING.findall(word)}
            named = {value for _, value in said} | words
            # Engines and precisions may stand alone, as values that a parameter takes.
            precisions = [name for name in PRECISIONS if name in named and any("train.precision" in w for w in words)]
            refused = any(isinstance(node, ast.Attribute) and node.attr == "raises" for node in ast.walk(test))
            for engine in engines:
                if engine in named:
                    yield from (
                        (engine, name, f"tests/parallel/{path.name}::{test.name}", refused) for name in precisions
                    )


def _texts(node: ast.AST, constants: dict[str, ast.AST]) -> Iterator[str]:
    """Yield all texts in a piece of code and in the module's constants that it names."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value
        elif isinstance(part, ast.Name) and part.id in constants:
            yield from _texts(constants[part.id], {k: v for k, v in constants.items() if k != part.id})
