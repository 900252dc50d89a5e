"""The house: imports go one way down the list in docs/layout.md, and every kind of work has its rooms."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from edgecsi import errors
from edgecsi.errors import EdgecsiError

ROOT = Path(__file__).parents[1]
LAYOUT = ROOT / "docs" / "layout.md"
MAX_LINES, MAX_FILES = 450, 25
# Tables: rows of one kind, to be looked up and not to be read.
TABLES = {"kernels/emit.py"}
TVM = ("lower", "kernels", "tune", "codegen", "device/rpc.py")
TALKS = ("cli", "results")
OWN_WORDS = {"UnsupportedOperators"}  # it says why and what to do by itself


@cache
def files() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = sorted((ROOT / "edgecsi").rglob("*.py"))
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in found}


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All of a file's syntax but what only type checkers see."""
    kept, waiting = [], [ast.parse(path.read_text("utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        kept.append(node)
        waiting += ast.iter_child_nodes(node)
    return kept


def imported(path: Path) -> Iterator[str]:
    """Names of what a file imports, also inside of functions: ``edgecsi.bundle.read.Bundle``, ``tvm``."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def edges() -> dict[str, set[str]]:
    """Module to the modules of ours that it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, path in files().items():
        for name in imported(path):
            while name and name not in files():
                name = name.rpartition(".")[0]
            if name.startswith("edgecsi.") and name != module:
                found[module].add(name)
    return found


def within(path: Path) -> str:
    return path.relative_to(ROOT / "edgecsi").as_posix()


def rooms() -> list[str]:
    """The list of docs/layout.md, from the top down."""
    block = re.search(r"```imports\n(.*?)```", LAYOUT.read_text("utf-8"), re.S)
    assert block, "docs/layout.md has no list of imports"
    return block[1].split()


def room(module: str) -> str:
    """The longest room that holds a module."""
    name = module.removeprefix("edgecsi.").replace(".", "/")
    fitting = [r for r in rooms() if name == r or name.startswith(f"{r}/")]
    assert fitting, f"{module} is in no room of docs/layout.md"
    return max(fitting, key=len)


def test_imports_go_one_way_down_the_list_of_the_layout() -> None:
    order = {name: number for number, name in enumerate(rooms())}
    assert len(order) == len(rooms()), "a room is listed twice"
    upward = [
        f"{module} imports {other}"
        for module, others in edges().items()
        for other in others
        if module != "edgecsi" and order[room(module)] > order[room(other)]
    ]
    assert not upward, "imports run up:\n" + "\n".join(sorted(upward))


def test_no_import_runs_in_a_circle() -> None:
    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in edges()[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    circular = [module for module in files() if module in reached(module)]
    assert not circular


def test_every_room_exists_and_is_described() -> None:
    text = LAYOUT.read_text("utf-8")
    for name in rooms():
        path = ROOT / "edgecsi" / name
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"docs/layout.md lists {name}"
    described = {m.split("/")[0].removesuffix(".py") for m in re.findall(r"edgecsi/([a-z_./]+)", text)}
    packages = {within(p).split("/")[0] for p in files().values() if "/" in within(p)}
    assert not packages - described


@pytest.mark.parametrize(
    ("packages", "allowed"),
    [
        (("tvm", "tvm_ffi"), TVM),
        # checkpoints of others hold an argparse.Namespace
        (("click", "argparse", "rich"), (*TALKS, "models/checkpoint_files.py")),
        (("socket", "socketserver", "http", "urllib", "ssl"), ("device",)),
        (
            ("tempfile",),
            ("disk.py", "doctor.py", "device", "deploy/here.py", "codegen/library.py", "results/reliability"),
        ),
        # to make hostile files of
        (("pickle", "marshal", "shelve"), ("results/reliability/damage/archives.py",)),
    ],
)
def test_what_has_rooms_of_its_own_is_imported_nowhere_else(
    packages: tuple[str, ...], allowed: tuple[str, ...]
) -> None:
    elsewhere = {
        within(path)
        for path in files().values()
        for name in imported(path)
        if name.split(".")[0] in packages
        and not any(within(path) == place or within(path).startswith(f"{place}/") for place in allowed)
    }
    assert not elsewhere


def test_only_the_command_line_and_the_scripts_print() -> None:
    printing = {
        within(path)
        for path in files().values()
        if within(path).split("/")[0] not in TALKS
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "sys.stdout.write", "input")
        and not any(key.arg == "file" for key in node.keywords)  # a protocol's line, to a pipe
    }
    assert not printing


def test_nothing_is_too_long() -> None:
    long = {
        within(path): lines
        for path in files().values()
        if (lines := len(path.read_text("utf-8").splitlines())) > MAX_LINES and within(path) not in TABLES
    }
    assert not long
    full = defaultdict(int)
    for path in files().values():
        full[path.parent] += 1
    crowded = {within(f): n for f, n in full.items() if n > MAX_FILES}
    assert not crowded


def test_every_error_has_its_three_lines() -> None:
    """What happened, why, and what to do: none is left out or empty where an error is raised."""
    kinds = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, EdgecsiError)
    }
    short = []
    for path in files().values():
        for node in nodes(path):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in kinds - OWN_WORDS
            ):
                lines = [*node.args, *(keyword.value for keyword in node.keywords)]
                starred = any(isinstance(line, ast.Starred) for line in lines)
                if (len(lines) < 3 and not starred) or any(ast.unparse(line) == "''" for line in lines):
                    short.append(f"{within(path)}:{node.lineno}")
    assert not short


def test_files_that_the_layout_names_are_there() -> None:
    lost, room = [], ROOT
    for line in LAYOUT.read_text("utf-8").splitlines():
        if heading := re.match(r"## `((?:edgecsi|tests)/[\w/]*)", line):
            room = ROOT / heading[1]
        room = room if room.is_dir() else room.parent
        for name in re.findall(r"`([\w/]+\.(?:py|c|sh))`", line):
            if not any((top / name).exists() for top in (ROOT, ROOT / "edgecsi")) and not [*room.rglob(name)]:
                lost.append(name)
    assert lost == []
