"""Every move of a slice stands in one module, and in the table of its docstring."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from timestore_pipeline.ledger import slices

LEDGER = Path(slices.__file__).parent
MOVES = re.compile(r"^(\w+) +(?:\(\w+\)|\w+) → (?:\(\w+\)|\w+) ", re.MULTILINE)
OF_SLICES = {"slices", "batch_slices"}


def moves(node: ast.AST) -> bool:
    """Whether something inserts, changes or deletes slices, or which batches have rows in them."""
    return any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in {"insert", "update", "delete"}
        and isinstance(call.args[0], ast.Name)
        and call.args[0].id in OF_SLICES
        for call in ast.walk(node)
    )


def module(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_the_table_names_every_function_that_moves_slices():
    functions = {
        node.name for node in module(LEDGER / "slices.py").body if isinstance(node, ast.FunctionDef) and moves(node)
    }

    assert set(MOVES.findall(slices.__doc__ or "")) == functions


def test_no_other_module_moves_slices():
    others = {path.name for path in LEDGER.glob("*.py") if path.name != "slices.py" and moves(module(path))}

    assert others == set()
