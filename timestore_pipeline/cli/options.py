"""Arguments and options that several commands have, and what they have in common: opening the store, and asking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from timestore_pipeline.datasets import DatasetSpec
    from timestore_pipeline.model.windows import WindowRange
    from timestore_pipeline.store import Store

Datasets = Annotated[
    list[str] | None, typer.Argument(metavar="DATASET", help="Datasets; all of them if none is named.")
]
NamedDatasets = Annotated[list[str] | None, typer.Argument(metavar="DATASET", help="The datasets.")]
OneDataset = Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.")]
EveryDataset = Annotated[bool, typer.Option("--all", help="Every dataset.")]
FirstWindow = Annotated[str | None, typer.Option(metavar="KEY", help="First window, such as 2026-11-23.")]
LastWindow = Annotated[str | None, typer.Option(metavar="KEY", help="Last window, included.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
JsonForTable = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def open_store() -> Store:
    """Open the installation of the environment."""
    from timestore_pipeline.store import Store

    return Store.open()


def each_once(datasets: Sequence[str] | None) -> list[str]:
    """Return the datasets in the order in which they were named, each once."""
    return list(dict.fromkeys(datasets or ()))


def chosen(datasets: Sequence[str] | None, all_datasets: bool) -> list[str]:
    """Return the datasets that were named, none for all of them; one of both must have been said."""
    if bool(datasets) == all_datasets:
        raise typer.BadParameter("name the datasets, or give --all")
    return each_once(datasets)


def windows_of(spec: DatasetSpec, first: str | None, last: str | None) -> WindowRange:
    """Return the windows between two keys (None is unbounded).

    Raises:
        ValueError: there is no such window, or the last one is before the first one.
    """
    from timestore_pipeline.model.windows import WindowRange

    return WindowRange(*(None if key is None else spec.window_from_key(key) for key in (first, last)))


def seconds_of(text: str, option: str) -> float:
    """Return a duration such as ``90s`` or ``7d`` in seconds; ``option`` is what is wrong where it is none."""
    from timestore_pipeline.model.durations import parse_duration

    try:
        return parse_duration(text).total_seconds()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def go_on_if(question: str) -> None:
    """Ask, and end the command unless the answer is yes."""
    from timestore_pipeline.cli.output import ask, can_ask

    if not can_ask():
        raise typer.BadParameter("nobody can be asked here; give --yes")
    if not ask(question):
        raise typer.Exit(1)
