"""No module imports itself by way of others, imports inside functions counted."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(part for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__"): path
    for path in sorted((ROOT / "adatad").rglob("*.py"))
}


def imported(module: str) -> Iterator[str]:
    """Modules of the package that a module names in an import anywhere in it."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            # A name of a package is a module of its own, or what the package's __init__ holds.
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in FILES else node.module for name in names if node.module in FILES)


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: set(imported(module)) for module in FILES}
    assert sum(map(len, graph.values())) > len(FILES)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' <- '.join(error.args[1])}") from None
