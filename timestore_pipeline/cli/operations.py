"""``timestore drain``, ``resume`` and ``ledger``: what they print, and how they end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.exit_codes import ExitCode
from timestore_pipeline.cli.operator import command_has_died, operator, this_command
from timestore_pipeline.cli.output import print_json, say, warn
from timestore_pipeline.errors import UnknownDataset
from timestore_pipeline.ledger.datasets import known_datasets
from timestore_pipeline.ledger.limits import EVERY_DATASET, all_pauses
from timestore_pipeline.operating.drain import Drained, Remainder, drain, let_in
from timestore_pipeline.operating.removal import Removal, plan_removal, remove_dataset
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.clearing import clear_staging


def drain_datasets(
    store: Store, datasets: Sequence[str], *, timeout_seconds: float, reason: str, as_json: bool
) -> ExitCode:
    """Drain datasets (none: all); progress goes to stderr, the outcome to stdout.

    Raises:
        UnknownDataset: a dataset is neither declared nor known to the ledger.
    """
    drained = drain(
        store,
        datasets,
        owner=this_command(),
        by=operator(),
        reason=reason,
        timeout_seconds=timeout_seconds,
        owner_is_gone=command_has_died,
        progress=warn,
    )
    left = [remainder for remainder in drained.remainders if not remainder.empty]
    if as_json:
        print_json(_as_json(drained))
    else:
        for remainder in drained.remainders:
            say(_in_words(drained, remainder))
    resume = " ".join(datasets) if datasets else "--all"
    warn(f"intake stays paused until 'timestore resume {resume}'")
    if not left:
        return ExitCode.DONE
    return ExitCode.TRY_LATER if all(remainder.passes for remainder in left) else ExitCode.FAILED


def resume_datasets(store: Store, datasets: Sequence[str], *, as_json: bool) -> ExitCode:
    """Let datasets (none: all) take in again.

    Raises:
        UnknownDataset: a dataset is neither declared nor known to the ledger.
    """
    with store.ledger.read() as tx:
        known = known_datasets(tx)
    for name in datasets:
        if name not in store.datasets.declared and name not in known:
            raise UnknownDataset(name, list(store.datasets.declared))
    resumed = let_in(store, datasets)
    with store.ledger.read() as tx:
        left = all_pauses(tx)
    still_paused = bool(datasets) and EVERY_DATASET in left
    if as_json:
        print_json({"resumed": resumed, "still_paused": sorted(left)})
    else:
        for name in resumed or datasets or ["-"]:
            what = "intake of all datasets" if name == EVERY_DATASET else f"{name}: intake"
            say(f"{what} goes on" if name in resumed else f"{name}: nothing was paused")
    if still_paused:
        warn("all datasets are paused together: 'timestore resume --all' ends that")
        return ExitCode.FAILED
    return ExitCode.DONE


def clear_staging_directory(
    store: Store, datasets: Sequence[str], *, lose_rows: int, lose_files: int, as_json: bool
) -> ExitCode:
    """Clear the staging directory of datasets (none: of all that the ledger knows).

    Raises:
        StagingNotEmpty, BuildInFlight, UnknownDataset: nothing was done.
    """
    cleared = clear_staging(store, datasets, by=operator(), lose_rows=lose_rows, lose_files=lose_files)
    if as_json:
        print_json(asdict(cleared))
    else:
        say(f"{wording.counted(cleared.files, 'file')} of {wording.size(cleared.bytes)} removed")
        if cleared.lost_rows or cleared.lost_files:
            say(
                f"{wording.counted(cleared.lost_rows, 'row')} and {wording.counted(cleared.lost_files, 'file')} "
                "given up; 'timestore quarantine list --all' says by whom"
            )
    for problem in cleared.problems:
        warn(problem)
    return ExitCode.FAILED if cleared.problems else ExitCode.DONE


def remove_a_dataset(
    store: Store, dataset: str, *, with_table: bool, dry_run: bool, lose_rows: int, as_json: bool
) -> ExitCode:
    """Remove a dataset that is not declared any more, or say what would be.

    Raises:
        UnknownDataset, RemovalRefused, TableError, LedgerError: as :func:`remove_dataset`.
    """
    if dry_run:
        removal = plan_removal(store, dataset, with_table=with_table)
    else:
        removal = remove_dataset(store, dataset, with_table=with_table, lost_rows=lose_rows, by=operator())
    if as_json:
        print_json({**asdict(removal), "lost_rows": removal.lost_rows, "dry_run": dry_run})
    else:
        say(f"{dataset}: {'would be removed' if dry_run else 'removed'}: {removal_in_words(removal)}")
        if dry_run and removal.lost_rows:
            say(f"rows that are nowhere else; give them up with --lose-rows {removal.lost_rows}")
    for file in removal.staying:
        warn(f"{file} stays: nobody can say whose it is")
    if removal.table and not with_table:
        warn(f"the table stays at {removal.table}: move it away before a dataset of that name is declared again")
    return ExitCode.DONE


def removal_in_words(removal: Removal) -> str:
    """Return what a removal takes."""
    parts = [
        wording.counted(removal.staged_rows, "unpublished row"),
        f"{wording.counted(removal.quarantined, 'quarantine entry', 'quarantine entries')} with "
        + wording.counted(removal.quarantined_rows, "row"),
        f"{wording.counted(removal.staging.files, 'file')} of {wording.size(removal.staging.bytes)} in staging",
    ]
    if removal.with_table and removal.table:
        parts.append(f"the table with {wording.counted(removal.table_rows, 'row')} at {removal.table}")
    return ", ".join(parts)


def rebuild_the_ledger(
    *,
    replace_existing: bool,
    adopt: bool,
    take_over: bool,
    lost_tables: Collection[str],
    lost_segments: Collection[str],
    as_json: bool,
) -> ExitCode:
    """Make the ledger again; what could not be restored is said on stderr and fails the command.

    Raises:
        LedgerInUse, LedgerError, PlaceError, TableError, SettingsError, DatasetsFileError: as they say.
    """
    from timestore_pipeline.restoring.ledger import rebuild_ledger

    rebuilt = rebuild_ledger(
        by=operator(),
        replace_existing=replace_existing,
        adopt=adopt,
        take_over=take_over,
        lost_tables=lost_tables,
        lost_segments=lost_segments,
    )
    if as_json:
        print_json(
            {
                "ledger": rebuilt.location,
                "moved_aside": rebuilt.moved_aside and str(rebuilt.moved_aside),
                "complete": rebuilt.complete,
                "datasets": [asdict(each) for each in rebuilt.datasets],
            }
        )
    for each in rebuilt.datasets:
        if not as_json:
            say(
                f"{each.dataset}: {wording.counted(each.batches, 'batch', 'batches')}, "
                f"{wording.counted(each.staged_rows, 'row')} staged in {wording.counted(each.segments, 'segment')}, "
                f"{wording.counted(each.published_rows, 'row')} published in "
                f"{wording.counted(each.windows, 'window')}, "
                f"{wording.counted(each.quarantined, 'entry', 'entries')} in quarantine"
            )
        for sentence in (*each.notes, *each.problems):
            warn(sentence)
    if not as_json and not rebuilt.datasets:
        say("there was nothing to restore; the ledger is empty")
    if rebuilt.moved_aside:
        warn(f"the ledger before is {rebuilt.moved_aside}")
    return ExitCode.DONE if rebuilt.complete else ExitCode.FAILED


def back_up_the_ledger(target: Path, *, as_json: bool) -> ExitCode:
    """Copy the ledger to ``target``.

    Raises:
        LedgerError: it is no SQLite file, cannot be read, or the copy cannot be written.
        SettingsError: as it says.
    """
    from timestore_pipeline.operating.backup import back_up_ledger
    from timestore_pipeline.settings import load_settings

    size = back_up_ledger(load_settings(), target)
    if as_json:
        print_json({"file": str(target.absolute()), "bytes": size})
    else:
        say(f"{target}: {wording.size(size)}, checked")
    return ExitCode.DONE


def _in_words(drained: Drained, remainder: Remainder) -> str:
    rows = drained.published_rows.get(remainder.dataset, 0)
    done = f"{wording.counted(rows, 'row')} published" if rows else "nothing was staged"
    if remainder.empty:
        return f"{remainder.dataset}: {done}, nothing is left"
    return f"{remainder.dataset}: {wording.counted(rows, 'row')} published; left: {'; '.join(remainder.reasons)}"


def _as_json(drained: Drained) -> dict[str, Any]:
    return {
        "empty": drained.empty,
        "datasets": [
            {
                "dataset": each.dataset,
                "declared": each.declared,
                "published_rows": drained.published_rows.get(each.dataset, 0),
                "empty": each.empty,
                "staged_batches": each.queue.pending_batches,
                "staged_rows": each.queue.pending_rows,
                "quarantine": {
                    "batches": each.quarantine.batches,
                    "rows": each.quarantine.rows,
                    "segments": each.quarantine.segments,
                },
                "in_flight": each.in_flight
                and {"build": each.in_flight.id, "owner": each.in_flight.owner, "rows": each.in_flight.rows},
                "error": each.error,
                "reasons": list(each.reasons),
            }
            for each in drained.remainders
        ],
    }
