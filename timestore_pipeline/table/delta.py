"""delta-rs, as the other modules get it: the only one that imports it, so that no panic of it passes their handlers.

A panic of Rust arrives as a ``BaseException``, which nobody expects of a library: it would end a thread, and leave a
build in flight. Here it becomes an error that says which limit was met, or that the table could not be used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import deltalake
from deltalake import CommitProperties, Field, PostCommitHookProperties, Schema, TableFeatures, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from deltalake.schema import PrimitiveType
from deltalake.transaction import AddAction, RemoveAction

from timestore_pipeline.errors import DeltaPanic, TooManyOpenFiles
from timestore_pipeline.exhaustion import out_of_files

__all__ = [
    "AddAction",
    "CommitFailedError",
    "CommitProperties",
    "DeltaError",
    "DeltaStorageHandler",
    "DeltaTable",
    "Field",
    "PostCommitHookProperties",
    "PrimitiveType",
    "RemoveAction",
    "Schema",
    "TableFeatures",
    "TableNotFoundError",
    "Transaction",
    "add_feature",
    "guarded",
    "set_properties",
]

_OF_RUST = "pyo3_runtime"


def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of a table that raises what the handlers of this project know."""

    @wraps(call)
    def call_guarded(self: Any, *args: Any, **options: Any) -> Any:
        try:
            return call(self, *args, **options)
        except BaseException as error:
            if out_of_files(error):
                raise TooManyOpenFiles("the table was opened or committed to") from error
            if type(error).__module__ == _OF_RUST:
                raise DeltaPanic(str(error)) from error
            raise

    return call_guarded


class DeltaTable(deltalake.DeltaTable):
    """delta-rs' table, of which every call raises errors of this project or of :mod:`deltalake.exceptions`."""

    __init__ = guarded(deltalake.DeltaTable.__init__)
    create = classmethod(guarded(deltalake.DeltaTable.create.__func__))  # type: ignore[attr-defined]


for _name, _member in vars(deltalake.DeltaTable).items():
    if callable(_member) and not _name.startswith("_"):
        setattr(DeltaTable, _name, guarded(_member))


@guarded
def add_feature(table: DeltaTable, feature: TableFeatures, said: CommitProperties) -> None:
    """Let a table have a feature of the protocol, which raises its version where that is needed."""
    table.alter.add_feature(feature, allow_protocol_versions_increase=True, commit_properties=said)


@guarded
def set_properties(table: DeltaTable, properties: dict[str, str], said: CommitProperties) -> None:
    """Give a table these properties, of whatever name, in a commit that cleans nothing up."""
    table.alter.set_table_properties(
        properties,
        raise_if_not_exists=False,
        commit_properties=said,
        post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),
    )
