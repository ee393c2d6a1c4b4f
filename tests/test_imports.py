"""The order of the rooms: each imports only from those below it, and no module from itself in a
circle.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (
    {"errors"},
    {"settings", "names"},
    {"config"},
    {"validation"},
    {"runtime"},
    {"data", "model"},
    {"compress", "documents", "weights"},
    {"training", "evaluation"},
    {"experiment"},
    {"inference"},
    {"sharing"},
    {"estimate", "reporting", "serving"},
    {"commands"},
)
"""From bottom to top; the rooms of one row do not import each other."""
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
COMMANDS_ONLY = {"estimate", "reporting", "serving"}
INNER_IMPORTS = 40
"""Imports inside functions, of the whole package: for start-up time alone."""


def modules():
    for path in sorted((ROOT / "gistjax").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, path


MODULES = dict(modules())


def room(module):
    """The room of a module: its folder, or `commands` for what a user types."""
    parts = module.split(".")
    if len(parts) == 1:
        return "commands"
    return parts[1] if parts[1] in LEVEL else "commands"


def imported(path):
    """The modules that a file imports, wherever the import stands, but for type checking."""
    nodes = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


EDGES = {name: set(imported(path)) - {name, "gistjax"} for name, path in MODULES.items()}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_room_imports_only_from_the_rooms_below_it(module):
    own = room(module)
    for target in EDGES[module]:
        assert not target.startswith(("launch", "docs", "tests")), target
        if target not in MODULES:
            continue
        other = room(target)
        assert other == own or LEVEL[other] < LEVEL[own], f"{module} imports {target}"
        if other in COMMANDS_ONLY and own != other:
            assert own == "commands", f"{module} imports {target}, which is for commands alone"


def test_no_module_imports_itself_in_a_circle():
    def reach(module, seen):
        for target in EDGES.get(module, ()):
            if target not in seen:
                seen.add(target)
                reach(target, seen)
        return seen

    circles = [
        module for module in MODULES if module != "gistjax" and module in reach(module, set())
    ]
    assert not circles


def test_the_decoder_knows_nothing_of_compression():
    for name, path in MODULES.items():
        if room(name) == "model":
            text = path.read_text(encoding="utf-8").lower()
            found = re.findall(r"\b(?:compress|slot|gist mask|memory)", text)
            assert not found, f"{name} speaks of {found}"


def test_few_imports_are_inside_functions():
    """`gistjax/__init__.py` and type checking apart."""
    inner = [
        (name, node.lineno)
        for name, path in MODULES.items()
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert len(set(inner)) <= INNER_IMPORTS, sorted(set(inner))


def test_files_and_parameter_lists_stay_short():
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, f"{name} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                names = [arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)]
                count = len(names) - ("self" in names or "cls" in names)
                assert count <= 8, f"{name}.{node.name} has {count} parameters"


def test_no_file_imports_a_test():
    """What several tests share is in `tests/helpers`."""
    tests = {path.stem for path in (ROOT / "tests").rglob("test_*.py")} | {"conftest"}
    rooms = (ROOT / "gistjax", ROOT / "launch", ROOT / "tests")
    for path in (path for room in rooms for path in room.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found = tests.intersection(re.split(r"\W+", ast.unparse(node)))
                assert not found, f"{path} imports {found}"
