"""The parts of the package know each other one way only, and every module says what it is for.

Read from the source, so a part that is never imported by a test is held to it as well.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

import timestore_pipeline
import timestore_pipeline_tests

PACKAGE = timestore_pipeline.__name__
PACKAGE_ROOT = Path(timestore_pipeline.__file__).parent
TESTS_ROOT = Path(timestore_pipeline_tests.__file__).parent

# Lowest first. A part may know its own layer, as long as there is no cycle, and every layer below.
LAYERS = [
    {"model", "cpu_time", "crash_points", "durable_files", "exhaustion", "inert"},
    {"errors"},
    {"alone"},
    {"settings"},
    {"datasets", "duck", "storage"},
    {"ledger", "placement"},
    {"places", "policy"},
    {"store"},
    {"rows"},
    {"landing"},
    {"segments"},
    {"staging"},
    {"table"},
    {"building", "reading"},
    {"timestore"},
    {"operating", "metrics", "validation", "simulating"},
    {"upkeep", "restoring"},
    {"http"},
    {"orchestration", "cli", "definitions"},
]
LAYER_OF = {part: height for height, parts in enumerate(LAYERS) for part in parts}
MAY_IMPORT_DAGSTER = {"orchestration", "definitions"}

STILL_WIDE = {
    "operating/drain.py:drain",
}
"""Functions of more than six parameters; none comes to them, and one that is narrower leaves."""


def modules_under(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))))


def module_name(path: Path) -> str:
    dotted = ".".join(path.relative_to(PACKAGE_ROOT.parent).with_suffix("").parts)
    return dotted.removesuffix(".__init__")


def part_of(module: str) -> str | None:
    """``timestore_pipeline.segments.segment`` is of ``staging``; the bare package is of no part."""
    package, _, rest = module.partition(".")
    return rest.split(".")[0] if package == PACKAGE and rest else None


def imported_modules(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, wherever it stands, under TYPE_CHECKING too."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            anchor = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*anchor, *([node.module] if node.module else [])])
            # `from timestore_pipeline import staging` names a part by its alias.
            yield from (f"{source}.{alias.name}" if source == PACKAGE else source for alias in node.names)


def parts_known_by(path: Path) -> set[str]:
    names = {part_of(module) for module in imported_modules(path)}
    return {name for name in names if name is not None and not name.startswith("__")}


def knowledge() -> dict[str, set[str]]:
    """For each part, the other parts that it imports."""
    known: dict[str, set[str]] = {}
    for path in modules_under(PACKAGE_ROOT):
        part = part_of(module_name(path))
        if part is not None:
            known.setdefault(part, set()).update(parts_known_by(path) - {part})
    return known


def test_every_part_has_its_place_in_the_layers():
    known = knowledge()
    unplaced = {*known, *chain.from_iterable(known.values())} - LAYER_OF.keys()

    assert not unplaced, f"say in LAYERS where these belong: {sorted(unplaced)}"


def test_a_part_knows_only_its_own_layer_and_those_below():
    above = {
        part: sorted(other for other in known if LAYER_OF.get(other, 0) > LAYER_OF[part])
        for part, known in knowledge().items()
    }

    assert {part: others for part, others in above.items() if others} == {}, "a part must not import these"


def test_no_two_parts_know_each_other():
    try:
        TopologicalSorter(knowledge()).prepare()
    except CycleError as error:
        pytest.fail("parts import each other in a circle: " + " → ".join(error.args[1]))


def modules_known_by(path: Path, modules: Collection[str]) -> set[str]:
    """The modules of ours that a file imports, under TYPE_CHECKING too; a folder itself only for what stands in it."""
    known = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            known.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            known.update(name if name in modules else node.module or "" for name in names)
    return known & set(modules) - {module_name(path)}


@pytest.mark.parametrize("root", [PACKAGE_ROOT, TESTS_ROOT], ids=lambda root: root.name)
def test_no_two_modules_know_each_other(root: Path):
    """Nor for their types alone: what two modules need of each other belongs into one of them, or into a third."""
    by_name = {module_name(path): path for path in modules_under(root)}
    try:
        TopologicalSorter({name: modules_known_by(path, by_name) for name, path in by_name.items()}).prepare()
    except CycleError as error:
        pytest.fail("modules import each other in a circle: " + " → ".join(error.args[1]))


def test_only_orchestration_imports_dagster():
    offenders = [
        str(path.relative_to(PACKAGE_ROOT))
        for path in modules_under(PACKAGE_ROOT)
        if part_of(module_name(path)) not in MAY_IMPORT_DAGSTER
        and any(module.startswith("dagster") for module in imported_modules(path))
    ]

    assert offenders == []


def test_only_one_module_imports_deltalake():
    """Whoever else did would meet panics of Rust, which pass every handler."""
    importing = {
        module_name(path)
        for path in modules_under(PACKAGE_ROOT)
        if any(module.split(".")[0] == "deltalake" for module in imported_modules(path))
    }

    assert importing == {f"{PACKAGE}.table.delta"}


@pytest.mark.process
def test_the_library_can_be_used_without_loading_dagster():
    library = [
        module_name(path)
        for path in modules_under(PACKAGE_ROOT)
        if LAYER_OF.get(part_of(module_name(path)) or "", 0) < LAYER_OF["orchestration"]
        and "migrations" not in path.parts  # only Alembic can load them
    ]
    program = "import importlib, sys\nfor module in sys.argv[1:]: importlib.import_module(module)\n"
    program += "sys.exit('dagster' in sys.modules)"

    finished = subprocess.run([sys.executable, "-c", program, *library], capture_output=True, text=True, check=False)

    assert finished.returncode == 0, finished.stderr or "a module of the library loads dagster"


def test_only_one_function_removes_anything_in_the_folder_of_a_table():
    """That is ``remove_from_table``; what else these parts delete lies elsewhere, or is the mark of all tables.

    The doctor asks whether landing files could be deleted.
    """
    allowed = {"archive", "landing", "staging", "tables"}
    offenders = [
        f"{path.relative_to(PACKAGE_ROOT)}:{node.lineno}"
        for part in ("building", "table", "operating", "upkeep", "restoring")
        for path in modules_under(PACKAGE_ROOT / part)
        if path.stem != "doctor"
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and node.attr == "delete" and _last_name(node.value) not in allowed
    ]

    assert offenders == []


def test_only_one_module_quotes_sql():
    """What is quoted in two ways is quoted wrongly in one of them some day."""
    doubling = {("'", "''"), ('"', '""')}
    offenders = {
        module_name(path)
        for path in modules_under(PACKAGE_ROOT)
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "replace"
        if tuple(value.value for value in node.args if isinstance(value, ast.Constant)) in doubling
    }

    assert offenders == {f"{PACKAGE}.duck.sql"}


def test_only_one_module_spells_a_path_in_staging():
    """Nobody else knows the names of its folders and the ends of its names."""
    spelled = re.compile(r"^/?(_quarantine|\.duckdb|\.rows\.parquet|\.resolved|\.timestore-segments)\b")
    offenders = {
        module_name(path)
        for path in modules_under(PACKAGE_ROOT)
        for node in nodes(path)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and spelled.match(node.value)
    }

    assert offenders == {f"{PACKAGE}.storage.layout"}


# Where else something depends on whether files are in a folder of this host, and why.
ASK_WHETHER_LOCAL = {
    "duck.connections": 2,  # a connection reaches folders besides places
    "landing.files": 1,  # files that land are found in two ways
    "operating.doctor": 1,  # of a folder the permissions and the disk are looked at, of a bucket what it allows
    "placement": 1,  # whether any place is an object store
    "places": 1,  # which places are on this host
    "settings": 5,  # from what is set to a path or a URL
    "staging.folder_arrivals": 5,  # a landing file is renamed within its file system, and copied out of it
    "staging.fetched": 1,  # the same within a bucket
    "staging.ingest": 1,  # files that landed are taken up in two ways
}


def test_only_storage_asks_whether_something_is_local():
    found = {
        module_name(path).removeprefix(f"{PACKAGE}."): sum(map(_asks_whether_local, nodes(path)))
        for path in modules_under(PACKAGE_ROOT)
        if part_of(module_name(path)) not in ("storage", "model")
    }

    assert {module: times for module, times in found.items() if times} == ASK_WHETHER_LOCAL


def _asks_whether_local(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(attr="local", value=value):
            return _last_name(value) != "threading"
        case ast.Call(func=ast.Name(id="isinstance"), args=[_, kinds]):
            return {_last_name(kind) for kind in ast.walk(kinds) if isinstance(kind, ast.expr)} & {
                "Path",
                "ObjectUrl",
            } != set()
    return False


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_every_module_says_what_it_is_for():
    modules = [*modules_under(PACKAGE_ROOT), *modules_under(TESTS_ROOT)]
    silent = [str(path.relative_to(PACKAGE_ROOT.parent)) for path in modules if not _docstring_of(path)]

    assert silent == []


def test_a_module_name_is_used_once():
    """But for ``ledger/X``, the SQL of X."""
    by_name: dict[str, list[str]] = {}
    for path in modules_under(PACKAGE_ROOT):
        relative = path.relative_to(PACKAGE_ROOT)
        if not path.stem.startswith("__") and relative.parts[0] != "ledger":
            by_name.setdefault(path.stem, []).append(str(relative))

    assert [paths for paths in by_name.values() if len(paths) > 1] == []


# Names of classes that stand for two ideas, and why.
NAMED_ALIKE = {
    "Rows": "reading's is the library's public name for rows that are read; staging's are all kinds of rows to load",
}


def test_the_name_of_a_class_that_other_modules_use_is_used_once():
    """Not by a class of one module either: whoever reads both would take one for the other."""
    by_name: dict[str, list[str]] = {}
    for path in modules_under(PACKAGE_ROOT):
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                by_name.setdefault(node.name.lstrip("_"), []).append(f"{path.relative_to(PACKAGE_ROOT)}:{node.name}")
    twice = {
        name: places
        for name, places in by_name.items()
        if len(places) > 1 and any(place.endswith(f":{name}") for place in places)
    }

    assert twice.keys() == NAMED_ALIKE.keys(), twice


def test_a_module_has_at_most_400_lines():
    """Or the first line of its docstring says why it is long: ``(long, because …)``."""
    long = {
        str(path.relative_to(PACKAGE_ROOT))
        for path in modules_under(PACKAGE_ROOT)
        if "versions" not in path.parts  # a migration stays as it is
        and len(path.read_text(encoding="utf-8").splitlines()) > 400
        and "(long, because " not in _docstring_of(path).partition("\n")[0]
    }

    assert not long, sorted(long)


# Modules that stand alone with less than 60 lines. Why is in the first line of each, and here.
SHORT = {
    "alone": "all loops over datasets share nothing else",
    "building.at_once": "it is gone with the next release",
    "building.order": "every kind of build takes one",
    "cli.clear_command": "a command of no group has a file",
    "cli.operator": "commands of many groups ask",
    "cli.wording": "all commands use these, and none prints here",
    "definitions": "Dagster loads it and it decides nothing",
    "exhaustion": "errors of every library are asked by it",
    "model.clock": "everybody asks it, and most ask nothing else",
    "model.freed": "all that removes files counts them in this way",
    "model.named_files": "three parts read such files, and in one way",
    "operating.backfill": "the asset and the command do the same",
    "operating.backup": "it takes the ledger's file and no installation",
    "orchestration.location": "it only lists what its neighbours define",
    "orchestration.logs": "it is the only way to write any",
    "orchestration.time_ranges": "inputs and outputs share it",
    "rows.formats.known": "it is the list that a new one joins",
    "rows.corrected": "builds and reads share it: both leave out the same rows",
    "rows.one_per_key": "builds and reads share it, so that both give the same rows",
    "staging.direct": "it is gone with the next release",
    "upkeep.disk_use": "each chore has a file",
    "upkeep.old_history": "each chore has a file",
    "upkeep.old_windows": "each chore has a file",
    "upkeep.quarantine_entries": "each chore has a file",
    "upkeep.small_files": "each chore has a file",
}


def test_a_module_has_at_least_60_lines():
    """Or the first line of its docstring says why it stands alone: ``(short, because …)``."""
    short = {
        module_name(path).removeprefix(f"{PACKAGE}."): _why_short(path)
        for path in modules_under(PACKAGE_ROOT)
        if len(path.read_text(encoding="utf-8").splitlines()) < 60
        and not path.stem.startswith("__")
        and "migrations" not in path.parts
    }

    assert short == SHORT


def _why_short(path: Path) -> str:
    return _docstring_of(path).partition("\n")[0].partition("(short, because ")[2].removesuffix(").")


def test_a_function_has_at_most_six_parameters():
    """``self`` does not count; a group of them that recurs is a value. The parameters of a command are its options."""
    wide = {
        f"{path.relative_to(PACKAGE_ROOT)}:{node.name}"
        for path in modules_under(PACKAGE_ROOT)
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and len(_parameters(node)) > 6
        and not any(isinstance(each, ast.Call) and _last_name(each.func) == "command" for each in node.decorator_list)
    }

    assert wide == STILL_WIDE, f"narrow {sorted(wide - STILL_WIDE)}, and take off the list {sorted(STILL_WIDE - wide)}"


def _docstring_of(path: Path) -> str:
    module = nodes(path)[0]
    assert isinstance(module, ast.Module)
    return ast.get_docstring(module) or ""


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [each.arg for each in every if each.arg not in {"self", "cls"}]


def test_only_the_ledger_writes_sql_for_the_ledger():
    """Who calls it has a transaction (``tx``) to hand on, and knows no table."""
    offenders = [
        f"{path.relative_to(PACKAGE_ROOT)}:{node.lineno}"
        for path in modules_under(PACKAGE_ROOT)
        if part_of(module_name(path)) != "ledger"
        for node in nodes(path)
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Attribute)
        if _imports_more_than_a_transaction(node) or _executes_in_a_transaction(node)
    ]

    assert offenders == []


def _imports_more_than_a_transaction(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] == "sqlalchemy" for alias in node.names)
    if not isinstance(node, ast.ImportFrom) or node.module is None:
        return False
    names = {alias.name for alias in node.names}
    if node.module == f"{PACKAGE}.ledger":
        return "schema" in names
    return node.module == f"{PACKAGE}.ledger.schema" or (
        node.module.split(".")[0] == "sqlalchemy" and names != {"Connection"}
    )


def _executes_in_a_transaction(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "execute" and _last_name(node.value) == "tx"
