"""Facts about packages: what pyproject.toml declares, and what the code imports."""

import ast
import re
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
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
        found |= set(re.findall(r"find_spec\(\"(\w+)\"\)", text))
    return found - sys.stdlib_module_names - set(PACKAGES)
