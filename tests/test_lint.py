"""Rules of this tree that ruff and mypy cannot state."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("streamchar", "kernels", "bench", "tests", "profiles")
    for path in (ROOT / folder).rglob("*.py")
)
KERNELS = sorted((ROOT / "kernels").glob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the absolute modules that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


@pytest.mark.parametrize("path", [*SOURCES, ROOT / "setup.py"], ids=name_of)
def test_nothing_imports_a_top_level_kernels(path: Path) -> None:
    tops = {module.partition(".")[0] for module in imports(ast.parse(path.read_text()))}
    assert "kernels" not in tops


@pytest.mark.parametrize("path", KERNELS, ids=name_of)
def test_optional_packages_are_imported_by_compat_alone(path: Path) -> None:
    optional = {
        "triton",
        "cupy",
        "flash_attn",
        "flash_attn_interface",
        "fa3_fwd_interface",
        "nvtx",
        "transformers",
    }
    tops = {module.partition(".")[0] for module in imports(ast.parse(path.read_text()))}
    assert path.name == "_compat.py" or not tops & optional


def test_no_file_names_a_place_of_one_machine() -> None:
    folders = (".ci", ".github", "bench", "kernels", "profiles", "streamchar", "tests")
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    files += [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in files:
        if path.suffix not in (".pyc", ".png"):
            found = re.search(r"/(?:root|home|work|Users|opt)/\w+", path.read_text(errors="ignore"))
            assert not found, f"{name_of(path)}: {found and found.group()}"
