"""``timestore quarantine``: what was set aside, why, and the two ways out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from timestore_pipeline.cli import output, wording
from timestore_pipeline.cli.exit_codes import ExitCode, exit_code_of, worst
from timestore_pipeline.cli.operator import operator
from timestore_pipeline.cli.options import Datasets, JsonForTable, each_once, open_store
from timestore_pipeline.cli.output import Heading, print_json, print_table, say, warn
from timestore_pipeline.errors import EntryNotOpen, TimestoreError, UnknownEntry

if TYPE_CHECKING:
    from timestore_pipeline.ledger.quarantine import QuarantineEntry
    from timestore_pipeline.operating.preview import Preview
    from timestore_pipeline.store import Store


_HEADINGS = (
    Heading("id", right=True),
    Heading("dataset"),
    Heading("kind"),
    Heading("since"),
    Heading("rows", right=True),
    Heading("bytes", right=True),
    Heading("source"),
    Heading("reason"),
    Heading("kept in"),
)
_STATE_HEADING = Heading("state")


quarantine_app = typer.Typer(
    help="What could not be staged, or not be read back.", no_args_is_help=True, rich_markup_mode=None
)

EntryIds = Annotated[list[int], typer.Argument(metavar="ID", help="Entries, by the ids that list shows.")]


@quarantine_app.command("list")
def list_quarantine(
    datasets: Datasets = None,
    as_json: JsonForTable = False,
    resolved: Annotated[bool, typer.Option("--all", help="Also what was retried or discarded.")] = False,
) -> None:
    """List what is in quarantine, and why."""
    from timestore_pipeline.ledger.quarantine import all_entries, open_entries

    with open_store() as store:
        with store.ledger.read() as tx:
            entries = all_entries(tx) if resolved else open_entries(tx)
        of = {entry.dataset for entry in entries}
        wanted = {name if name in of else store.datasets.declared[name].name for name in each_once(datasets)}
        entries = [entry for entry in entries if not wanted or entry.dataset in wanted]
        if as_json:
            print_json([_as_json(store, entry) for entry in entries])
            return
        headings, rows = list(_HEADINGS), [_as_row(store, entry) for entry in entries]
        if resolved:
            headings.append(_STATE_HEADING)
            rows = [[*row, _state_in_words(entry)] for row, entry in zip(rows, entries, strict=True)]
        print_table(headings, rows)


@quarantine_app.command("show")
def show_quarantine(
    entry: Annotated[int, typer.Argument(metavar="ID", help="The entry, by the id that list shows.")],
    as_json: JsonForTable = False,
) -> None:
    """Show one entry: why it is there, where its bytes are, and how they begin."""
    from timestore_pipeline.ledger.quarantine import find_entry, open_entries
    from timestore_pipeline.operating.preview import preview

    with open_store() as store:
        with store.ledger.read() as tx:
            found = find_entry(tx, entry)
            known = [each.id for each in open_entries(tx)]
        if found is None:
            raise UnknownEntry(entry, known)
        bytes_of_it = preview(store, found)
        if as_json:
            print_json({**_as_json(store, found), "preview": _preview_as_json(bytes_of_it)})
            return
        cells = [*_as_row(store, found), _state_in_words(found), found.batch_id]
    _print_entry(cells, bytes_of_it)


@quarantine_app.command("retry")
def retry_quarantine(entries: EntryIds) -> None:
    """Try once more: stage a file or rows again, or read a segment again that was restored from a backup."""
    from timestore_pipeline.ledger.states import QuarantineState
    from timestore_pipeline.operating.quarantine import retry_entry

    codes = []
    with open_store() as store:
        for entry_id in dict.fromkeys(entries):
            try:
                outcome = retry_entry(store, entry_id, operator())
            except TimestoreError as error:
                codes.append(_failed(error, QuarantineState.RETRIED))
                continue
            rows = wording.counted(outcome.rows, "row")
            if outcome.done:
                say(f"{entry_id}: retried, {rows} of {outcome.entry.source} staged")
            else:
                say(f"{entry_id}: still in quarantine, {rows} of {outcome.entry.source} staged")
            if outcome.left:
                warn(f"entry {entry_id}: {outcome.left}")
                codes.append(ExitCode.FAILED)
    raise typer.Exit(worst(codes))


@quarantine_app.command("discard")
def discard_quarantine(
    entries: EntryIds,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Give entries up for good. Their bytes are removed; who did it and when is remembered."""
    from timestore_pipeline.ledger.states import QuarantineState
    from timestore_pipeline.operating.quarantine import discard_entry

    ids = list(dict.fromkeys(entries))
    codes = []
    with open_store() as store:
        if not yes:
            question = _question(store, ids)
            if not output.can_ask():
                raise typer.BadParameter("nobody can be asked here; give --yes to discard for good")
            if not output.ask(question):
                raise typer.Exit(1)
        for entry_id in ids:
            try:
                entry = discard_entry(store, entry_id, operator())
            except TimestoreError as error:
                codes.append(_failed(error, QuarantineState.DISCARDED))
                continue
            say(f"{entry_id}: discarded, {wording.size(entry.bytes)} of {entry.source}")
    raise typer.Exit(worst(codes))


def _print_entry(cells: Sequence[str], found: Preview) -> None:
    headings = [heading.text for heading in (*_HEADINGS, _STATE_HEADING, Heading("batch"))]
    width = max(map(len, headings))
    for heading, cell in zip(headings, cells, strict=True):
        say(f"{heading.ljust(width)}  {cell}")
    say("")
    if found.problem:
        say(found.problem)
    elif found.columns:
        print_table([Heading(name) for name in found.columns], [[_cell(value) for value in row] for row in found.rows])
    for line in found.lines:
        say(line)


def _as_row(store: Store, entry: QuarantineEntry) -> list[str]:
    from timestore_pipeline.operating.quarantine import kept_at

    return [
        str(entry.id),
        entry.dataset,
        entry.kind.value,
        wording.moment(entry.created_at),
        "?" if entry.rows is None else wording.number(entry.rows),
        wording.size(entry.bytes),
        entry.source,
        entry.reason,
        kept_at(store, entry),
    ]


def _state_in_words(entry: QuarantineEntry) -> str:
    """Return ``open``, or how, when and by whom an entry was resolved."""
    if entry.resolved_at is None:
        return entry.state.value
    return f"{entry.state.value} {wording.moment(entry.resolved_at)} by {entry.resolved_by}"


def _as_json(store: Store, entry: QuarantineEntry) -> dict[str, Any]:
    from timestore_pipeline.operating.quarantine import kept_at

    return {
        "id": entry.id,
        "dataset": entry.dataset,
        "kind": entry.kind.value,
        "batch_id": entry.batch_id,
        "source": entry.source,
        "reason": entry.reason,
        "rows": entry.rows,
        "bytes": entry.bytes,
        "created_at": wording.iso(entry.created_at),
        "path": kept_at(store, entry),
        "state": entry.state.value,
        "resolved_at": None if entry.resolved_at is None else wording.iso(entry.resolved_at),
        "resolved_by": entry.resolved_by,
    }


def _question(store: Store, entry_ids: Sequence[int]) -> str:
    """Return what to ask before entries are discarded.

    Raises:
        UnknownEntry, EntryNotOpen: nothing is to be asked of such an entry.
    """
    from timestore_pipeline.operating.quarantine import open_entry

    entries = [open_entry(store, entry_id) for entry_id in entry_ids]
    for entry in entries:
        warn(
            f"entry {entry.id}, {entry.dataset!r}: {'?' if entry.rows is None else wording.number(entry.rows)} rows, "
            f"{wording.size(entry.bytes)} of {entry.source}: {entry.reason}"
        )
    return f"Remove {wording.counted(len(entries), 'entry', 'entries')} for good?"


def _failed(error: TimestoreError, wanted: str) -> ExitCode:
    warn(str(error))
    # The same command twice is no failure.
    if isinstance(error, EntryNotOpen) and error.state == wanted:
        return ExitCode.DONE
    return exit_code_of(error)


def _preview_as_json(found: Preview) -> dict[str, Any]:
    return {
        "columns": list(found.columns),
        "rows": [[None if value is None else _cell(value) for value in row] for row in found.rows],
        "lines": list(found.lines),
        "problem": found.problem,
    }


def _cell(value: object) -> str:
    return "" if value is None else str(value)
