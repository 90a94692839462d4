"""Rules of this tree that ruff and mypy cannot state."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("streamchar", "kernels", "bench", "tests", "profiles", "examples")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PRODUCT = sorted(path for folder in ("streamchar", "kernels") for path in (ROOT / folder).rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))

#: Rooms by height: a file imports from its own room and from lower floors, never from above or beside it.
FLOORS = (
    ("cli",),
    ("train", "eval"),
    ("data", "tools"),
    ("engine",),
    ("session",),
    ("runtime",),
    ("model", "codecs"),
    ("kernels",),
    ("text", "media", "checkpoint", "profiling", "numerics", "types"),
    ("config",),
    ("errors",),
)
FLAT_FILES = {
    "__init__.py",
    "checkpoint.py",
    "codegen.py",
    "engine.py",
    "errors.py",
    "numerics.py",
    "profiling.py",
    "types.py",
}
MOST_LINES = 500


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the absolute modules that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def package_of(path: Path) -> list[str]:
    """Return the dotted package that relative imports of a product file start from."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "kernels":
        parts = ("streamchar", *parts)
    return list(parts[:-1])


def rooms_imported(path: Path) -> Iterator[str]:
    """Yield the rooms of the product that a file imports, wherever in it."""
    package = package_of(path)
    for node in ast.walk(ast.parse(path.read_text())):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            modules = [f"{module}.{alias.name}" for alias in node.names]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "streamchar" and len(parts) > 1:
                yield parts[1]


def room_of(path: Path) -> str:
    """Return the room of a product file: its folder, or its own name where it lies flat."""
    first, *rest = path.relative_to(ROOT).parts
    return "kernels" if first == "kernels" else rest[0].removesuffix(".py")


def floor_of(room: str) -> int | None:
    return next((index for index, floor in enumerate(FLOORS) if room in floor), None)


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
    assert path.name == "compat.py" or not tops & optional


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_no_import_arrow_runs_back(path: Path) -> None:
    room = room_of(path)
    # The package's own __init__ and the shim of a documented command name what lies above them.
    if room in ("__init__", "codegen"):
        return
    here = floor_of(room)
    assert here is not None, f"{room} is a room that FLOORS does not list"
    for other in set(rooms_imported(path)) - {room}:
        there = floor_of(other)
        # Names of the package itself, such as __version__, belong to no room.
        if there is not None:
            assert there > here, f"{name_of(path)} imports {other}, which lies above {room} or beside it"


def test_the_arrow_check_sees_an_arrow_that_runs_back(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "streamchar" / "runtime" / "scheduler.py"
    file.parent.mkdir(parents=True)
    backward = (
        "from ..session.session import Session",
        "from .. import session",
        "import streamchar.session",
    )
    for line in backward:
        file.write_text(f"def late():\n    {line}\n")
        with pytest.raises(AssertionError, match="imports session, which lies above runtime"):
            test_no_import_arrow_runs_back(file)
    file.write_text("from ..model.dit import JointDiT\n")
    test_no_import_arrow_runs_back(file)


def test_no_new_file_lies_flat_in_the_package() -> None:
    flat = {path.name for path in (ROOT / "streamchar").glob("*.py")}
    assert flat <= FLAT_FILES, f"{flat - FLAT_FILES} belong in a room"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_file_is_over_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_no_two_classes_of_the_product_share_a_name() -> None:
    seen: dict[str, str] = {}
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] in ("streamchar", "kernels", "bench"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    # A stand-in for the root of errors, used where the kernels are loaded by themselves.
                    if node.name == "StreamCharError":
                        continue
                    other = seen.setdefault(node.name, name_of(path))
                    assert other == name_of(path), f"{node.name}: {other} and {name_of(path)}"


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_every_public_error_has_the_common_root(path: Path) -> None:
    bare = {"Exception", "ValueError", "TypeError", "RuntimeError", "OSError", "KeyError"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error") and not node.name.startswith("_"):
            bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
            rooted = "StreamCharError" in bases or bases - bare
            assert node.name == "StreamCharError" or rooted, f"{name_of(path)}: {node.name}"


def test_no_file_names_a_place_of_one_machine() -> None:
    folders = (".ci", ".github", "docs", *FOLDERS)
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    files += [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in files:
        if path.suffix not in (".pyc", ".png", ".gif", ".webp"):
            found = re.search(r"/(?:root|home|work|Users|opt)/\w+", path.read_text(errors="ignore"))
            assert not found, f"{name_of(path)}: {found and found.group()}"


def test_the_front_page_is_short_and_its_links_lead_somewhere() -> None:
    assert (ROOT / "README.md").stat().st_size <= 8 * 1024
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").glob("*.md"),
    ):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"
