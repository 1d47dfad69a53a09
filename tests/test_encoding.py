"""No text is read or written by the locale's encoding: files of a project mean the same on every machine."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("flows/*.py"), *ROOT.glob("docker/*.py")])
NO_FILES = ("os", "tarfile", "Image", "Index", "webbrowser")
"""Owners of an `open` that hands out bytes, or opens no file."""


def by_locale(call: ast.Call) -> bool:
    """Whether this reads or writes text, of a file or a process, without saying in which encoding."""
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if "encoding" in named or None in named:
        return False
    if isinstance(call.func, ast.Attribute) and name in ("read_text", "write_text"):
        return True
    if name == "open":
        owner = call.func.value if isinstance(call.func, ast.Attribute) else None
        modes = [one.value for one in [*call.args, *named.values()] if isinstance(one, ast.Constant)]
        binary = any("b" in mode for mode in modes if isinstance(mode, str) and len(mode) < 4)
        return not binary and not (isinstance(owner, ast.Name) and owner.id in NO_FILES)
    text = named.get("text")
    return isinstance(text, ast.Constant) and text.value is True


def test_every_text_has_its_encoding():
    found = []
    for path in SOURCES:
        calls = (node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call))
        found += [f"{path.relative_to(ROOT)}:{call.lineno}" for call in calls if by_locale(call)]

    assert SOURCES
    assert found == []
