"""``timestore quarantine``: what was set aside, why, where its bytes are, and what an operator decides of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.exit_codes import ExitCode, exit_code_of, worst
from timestore_pipeline.cli.operator import operator
from timestore_pipeline.cli.output import Heading, print_json, print_table, say, warn
from timestore_pipeline.errors import EntryNotOpen, TimestoreError, UnknownEntry
from timestore_pipeline.ledger.quarantine import QuarantineEntry, all_entries, find_entry, open_entries
from timestore_pipeline.ledger.states import QuarantineState
from timestore_pipeline.operating.preview import Preview, preview
from timestore_pipeline.operating.quarantine import discard_entry, kept_at, open_entry, retry_entry
from timestore_pipeline.store import Store

HEADINGS = (
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
STATE_HEADING = Heading("state")


def collect_entries(store: Store, datasets: Sequence[str] = (), *, resolved: bool = False) -> list[QuarantineEntry]:
    """Return what is in quarantine of the datasets (none: of all), oldest first; ``resolved``: and what was.

    Raises:
        UnknownDataset: a dataset is neither declared nor has anything in quarantine.
    """
    with store.ledger.read() as tx:
        entries = all_entries(tx) if resolved else open_entries(tx)
    of = {entry.dataset for entry in entries}
    wanted = {name if name in of else store.datasets.declared[name].name for name in datasets}
    return [entry for entry in entries if not wanted or entry.dataset in wanted]


def as_row(store: Store, entry: QuarantineEntry) -> list[str]:
    """Return the cells of an entry under :data:`HEADINGS`."""
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


def state_in_words(entry: QuarantineEntry) -> str:
    """Return ``open``, or how, when and by whom an entry was resolved."""
    if entry.resolved_at is None:
        return entry.state.value
    return f"{entry.state.value} {wording.moment(entry.resolved_at)} by {entry.resolved_by}"


def as_json(store: Store, entry: QuarantineEntry) -> dict[str, Any]:
    """Return an entry as ``timestore quarantine list --json`` prints it."""
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


def show_entry(store: Store, entry_id: int, *, as_json_document: bool) -> None:
    """Print all that is known of an entry, and how its bytes begin.

    Raises:
        UnknownEntry: there is none of that id.
    """
    with store.ledger.read() as tx:
        entry = find_entry(tx, entry_id)
        known = [each.id for each in open_entries(tx)]
    if entry is None:
        raise UnknownEntry(entry_id, known)
    found = preview(store, entry)
    if as_json_document:
        print_json({**as_json(store, entry), "preview": _preview_as_json(found)})
        return
    cells = [*as_row(store, entry), state_in_words(entry), entry.batch_id]
    headings = [heading.text for heading in (*HEADINGS, STATE_HEADING, Heading("batch"))]
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


def retry_entries(store: Store, entry_ids: Sequence[int]) -> ExitCode:
    """Retry entries, one after the other; prints what became of each."""
    codes = []
    for entry_id in entry_ids:
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
    return worst(codes)


def discard_entries(store: Store, entry_ids: Sequence[int]) -> ExitCode:
    """Discard entries for good, one after the other; prints what became of each."""
    codes = []
    for entry_id in entry_ids:
        try:
            entry = discard_entry(store, entry_id, operator())
        except TimestoreError as error:
            codes.append(_failed(error, QuarantineState.DISCARDED))
            continue
        say(f"{entry_id}: discarded, {wording.size(entry.bytes)} of {entry.source}")
    return worst(codes)


def question(store: Store, entry_ids: Sequence[int]) -> str:
    """Return what to ask before entries are discarded.

    Raises:
        UnknownEntry, EntryNotOpen: nothing is to be asked of such an entry.
    """
    entries = [open_entry(store, entry_id) for entry_id in entry_ids]
    for entry in entries:
        warn(
            f"entry {entry.id}, {entry.dataset!r}: {'?' if entry.rows is None else wording.number(entry.rows)} rows, "
            f"{wording.size(entry.bytes)} of {entry.source}: {entry.reason}"
        )
    return f"Remove {wording.counted(len(entries), 'entry', 'entries')} for good?"


def _failed(error: TimestoreError, wanted: QuarantineState) -> ExitCode:
    warn(str(error))
    # The same command twice is no failure.
    if isinstance(error, EntryNotOpen) and error.state == wanted.value:
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
