"""What imports what: nothing heavy at `import arlm`, one direction between the parts, a guest that needs only Python 3.9."""

import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import arlm

ROOT = Path(arlm.__file__).parent
GUEST = sorted((ROOT / "guest").rglob("*.py"))
HEAVY = {
    *("openai", "anthropic", "google.genai", "portkey_ai", "aiohttp", "genai_prices"),
    *("aiodocker", "modal", "e2b", "daytona", "prime_sandboxes"),
    *("starlette", "uvicorn", "rich", "typer"),
}
# From the bottom up: nothing reaches, by whatever way, into a later row. A part that is not listed may stand anywhere, but in no cycle.
ROWS = [{"types", "errors", "guest"}, {"broker", "server", "clients"}, {"environments"}, {"rlm"}, {"cli", "viewer", "testing"}]

Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Dotted name to file, for a package."""
    names = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    name: str  # dotted and absolute: the module, or a name in it
    lazy: bool  # inside a function: does not run at import, but is a dependency all the same


class Imports(ast.NodeVisitor):
    """The imports that can run in a module. What stands under TYPE_CHECKING cannot: a name in a signature is no dependency."""

    def __init__(self, package: str) -> None:
        self.package = package.split(".")
        self.found: list[Import] = []
        self.functions = 0

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [Import(name=alias.name, lazy=self.functions > 0) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        above = self.package[: len(self.package) - node.level + 1] if node.level else []
        base = [*above, *([node.module] if node.module else [])]
        self.found += [Import(name=".".join([*base, alias.name]), lazy=self.functions > 0) for alias in node.names]

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.functions += 1
        self.generic_visit(node)
        self.functions -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        typing_only = ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for statement in node.orelse if typing_only else [*node.body, *node.orelse]:
            self.visit(statement)


def imports(name: str, path: Path) -> list[Import]:
    finder = Imports(name if path.name == "__init__.py" else name.rpartition(".")[0])
    finder.visit(ast.parse(path.read_text("utf-8")))
    return finder.found


def import_graph(root: Path, *, lazy: bool) -> Graph:
    """Module to modules of the same package, over the imports that run at import, or over all of them."""
    known = modules(root)

    def module_of(name: str) -> str | None:
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name or None

    return {
        name: {target for it in imports(name, path) if (lazy or not it.lazy) and (target := module_of(it.name))} - {name}
        for name, path in known.items()
    }


def part_graph(graph: Graph) -> Graph:
    """The same between parts: a part is a folder or a module at the top; the package's own face goes by the package's name."""
    parts: Graph = {}
    for name, targets in graph.items():
        parts.setdefault(part(name), set()).update(part(target) for target in targets)
    return {name: targets - {name} for name, targets in parts.items()}


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def cycles(graph: Graph) -> list[str]:
    """The loops that a depth-first walk closes, each as "a -> b -> a"."""
    found: list[str] = []
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> None:
        if node in path:
            found.append(" -> ".join([*path[path.index(node) :], node]))
        elif node not in done:
            for target in sorted(graph.get(node, ())):
                visit(target, [*path, node])
            done.add(node)

    for start in sorted(graph):
        visit(start, [])
    return found


def reach(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        for target in graph.get(ahead.pop(), set()) - seen:
            seen.add(target)
            ahead.append(target)
    return seen


def steps_up(graph: Graph) -> list[str]:
    """Each part of ROWS that reaches a part of a later row."""
    found = []
    for height, row in enumerate(ROWS):
        above = set().union(*ROWS[height + 1 :])
        found += [f"{name} reaches {', '.join(sorted(wrong))}" for name in sorted(row) if (wrong := reach(graph, name) & above)]
    return found


def test_import_arlm_loads_no_provider_sdk_and_no_web_server():
    program = "import arlm, json, sys; print(json.dumps(list(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
    assert "arlm" in loaded
    assert HEAVY.isdisjoint(loaded)


def test_no_module_waits_for_itself_to_be_imported():
    assert cycles(import_graph(ROOT, lazy=False)) == []


def test_the_parts_form_no_cycle_even_through_imports_inside_functions():
    assert cycles(part_graph(import_graph(ROOT, lazy=True))) == []


def test_the_parts_know_only_what_lies_below_them():
    assert steps_up(part_graph(import_graph(ROOT, lazy=True))) == []


@pytest.mark.parametrize("name", sorted(ROWS[0]))
def test_the_ground_floor_knows_nobody(name):
    assert part_graph(import_graph(ROOT, lazy=True))[name] == set()


@pytest.mark.parametrize("path", GUEST, ids=lambda path: path.stem)
def test_a_guest_file_imports_only_the_standard_library_and_its_neighbours(path):
    name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    allowed = sys.stdlib_module_names | {neighbour.stem for neighbour in GUEST}
    wanted = {it.name for it in imports(name, path) if not it.name.startswith("arlm.guest")}
    assert {it for it in wanted if it.split(".")[0] not in allowed} == set()


@pytest.mark.parametrize("path", GUEST, ids=lambda path: path.stem)
def test_a_guest_file_is_python_3_9(path):
    tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 9))
    docstring_only = all(isinstance(it, ast.Expr) for it in tree.body)
    assert docstring_only or any(isinstance(it, ast.ImportFrom) and it.module == "__future__" for it in tree.body)


@pytest.fixture
def package(tmp_path):
    """A small package, to see that the rules above can be broken."""

    def write(**sources: str) -> Path:
        root = tmp_path / "pkg"
        for name, source in {"__init__": "", "server/__init__": "", "clients/__init__": "", **sources}.items():
            path = root / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, "utf-8")
        return root

    return write


def test_a_cycle_between_modules_is_found(package):
    root = package(a="from . import b", b="from .c import x", c="import pkg.a")
    assert cycles(import_graph(root, lazy=False)) == ["pkg.a -> pkg.b -> pkg.c -> pkg.a"]


def test_a_cycle_through_a_function_binds_parts_but_not_imports(package):
    root = package(**{"server/one": "from ..clients.two import x", "clients/two": "async def f():\n    from ..server import one"})
    assert cycles(import_graph(root, lazy=False)) == []
    assert cycles(part_graph(import_graph(root, lazy=True))) == ["clients -> server -> clients"]


def test_a_step_up_is_found_through_a_part_in_between(package):
    root = package(**{"server/one": "from ..plugins import x", "plugins": "try:\n    import pkg.rlm\nexcept ImportError: pass", "rlm": ""})
    assert steps_up(part_graph(import_graph(root, lazy=True))) == ["server reaches rlm"]


def test_an_import_for_types_alone_is_no_dependency(package):
    root = package(
        types="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .rlm import RLM\nelse:\n    from .errors import E",
        rlm="",
        errors="",
    )
    assert import_graph(root, lazy=True)["pkg.types"] == {"pkg.errors"}
