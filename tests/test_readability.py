"""Functions stay short and flat enough to be read at once, and tests lie where a reader looks for them."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = [path for folder in ("src", "flows") for path in sorted((ROOT / folder).rglob("*.py"))]
LINES, DEPTH, PARAMETERS = 45, 3, 8
TESTED_FROM = 60
"""Number of lines from which a module has its test module."""
BLOCKS = (ast.For, ast.While, ast.If, ast.With, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, FUNCTIONS):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its docstring."""
    length = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        length -= (first.end_lineno or 0) - first.lineno + 1
    return length


def depth(node: ast.AST) -> int:
    """Return how deep blocks are nested below a node; functions within it are measured by themselves."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTIONS):
            continue
        # `elif` is an `if` within an `else`, and no deeper for the reader.
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        deepest = max(deepest, depth(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def test_no_function_is_long() -> None:
    assert [name for name, function in functions() if code_lines(function) > LINES] == []


def test_no_function_is_nested_deeply() -> None:
    assert [name for name, function in functions() if depth(function) > DEPTH] == []


def test_no_constructor_has_many_parameters() -> None:
    def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        arguments = function.args
        return len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs) - 1

    assert [
        name for name, function in functions() if function.name == "__init__" and parameters(function) > PARAMETERS
    ] == []


def test_every_module_of_some_length_has_its_test_module() -> None:
    package = ROOT / "src" / "diptych"
    modules = [
        path.relative_to(package) for path in FILES if path.is_relative_to(package) and lines(path) >= TESTED_FROM
    ]
    assert modules
    assert [str(path) for path in modules if not (ROOT / "tests" / path.with_name(f"test_{path.name}")).exists()] == []
