"""Facts about packages: what pyproject.toml declares, and what the code imports."""

import ast
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("mt3data", "mt3train")

# Distributions whose modules are called otherwise.
MODULE_OF = {"PyYAML": "yaml"}


def imported() -> set[str]:
    """Packages from elsewhere that our code imports, at the top or inside a function."""
    found = set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - set(PACKAGES)


def calls(name: str) -> list[list[object]]:
    """Positional arguments of all calls of one function in our code; None: not a literal."""
    return [
        [getattr(argument, "value", None) for argument in node.args]
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]
