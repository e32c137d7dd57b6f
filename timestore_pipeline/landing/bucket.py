"""Looking for landing files in an object store: one listing for all datasets, whatever lies there.

An object appears whole, so its name alone tells whether it is ready. What a file system has and an object store has not
(links, permissions of one file) is not asked for; what an object store has instead is dealt with here: keys that cannot
be listed, and objects that stand for folders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from timestore_pipeline.errors import StorageError, UnlistableKey
from timestore_pipeline.landing.found import LandingFile, LandingScan, is_ready_name
from timestore_pipeline.ledger.landing import SettledFile, all_settled
from timestore_pipeline.model.locations import ObjectUrl
from timestore_pipeline.placement import hurried, storage_at
from timestore_pipeline.storage import Entry
from timestore_pipeline.storage.objects import ObjectStorage
from timestore_pipeline.store import Store

# Keys with an empty part, '.' or '..' directly in a dataset's folder sort before this, and with them what cannot be
# listed either: names that begin with a space or one of !"#$%&'()*+,-
_BEHIND_UNLISTABLE = "0"


@dataclass
class _Look:
    """What one look has found so far."""

    store: Store
    url: ObjectUrl
    wanted: frozenset[str]
    everywhere: bool
    settled: set[SettledFile]
    files: list[LandingFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    nested: Counter[str] = field(default_factory=Counter)
    undeclared: Counter[str] = field(default_factory=Counter)
    loose: int = 0
    examples: dict[str, str] = field(default_factory=dict)

    def take(self, entry: Entry) -> None:
        """Find out what a key is."""
        dataset, slash, name = entry.key.partition("/")
        if not slash:
            # A console makes a folder by writing an empty object in its name.
            if entry.bytes and is_ready_name(dataset):
                self.loose += 1
                self.examples.setdefault("", dataset)
        elif dataset not in self.store.datasets.declared:
            if is_ready_name(dataset):
                self.undeclared[dataset] += 1
        elif dataset in self.wanted:
            self._take_file(dataset, name, entry)

    def _take_file(self, dataset: str, name: str, entry: Entry) -> None:
        if "/" in name:
            if entry.bytes and is_ready_name(name) and self.store.datasets[dataset].landing.matches(name):
                self.nested[dataset] += 1
                self.examples.setdefault(dataset, name)
            return
        if not is_ready_name(name) or not self.store.datasets[dataset].landing.matches(name):
            return
        file = LandingFile(dataset, Path(dataset, name), entry.bytes, entry.modified_at / 1e6, version_of(entry))
        if settled_object(file) not in self.settled:
            self.files.append(file)

    def scan(self) -> LandingScan:
        """Return what was found."""
        for dataset, count in sorted(self.nested.items()):
            self.problems.append(
                f"{dataset}: {count:,} objects lie in folders below {self.url / dataset}, such as "
                f"{self.examples[dataset]!r}; only those directly in it are taken, write them there"
            )
        if self.everywhere:
            for name, count in sorted(self.undeclared.items()):
                self.problems.append(
                    f"folder {self.url / name} belongs to no declared dataset, its {count:,} files wait; declare "
                    f"{name!r} in {self.store.settings.datasets_path} or remove it"
                )
            if self.loose:
                self.problems.append(
                    f"{self.loose:,} objects lie outside of any dataset's folder in {self.url}, such as "
                    f"{self.examples['']!r}; move them into one"
                )
        self.files.sort(key=lambda file: (file.modified_at, file.path))
        return LandingScan(tuple(self.files), tuple(self.problems))


def look_into_bucket(store: Store, url: ObjectUrl, datasets: Iterable[str], *, everywhere: bool) -> LandingScan:
    """Look into ``<landing>/<dataset>/`` of the given datasets, and ``everywhere`` else: what ``scan_landing`` does.

    A thousand objects cost one request, those of folders and archives below the landing prefix too. Where the store
    does not answer, the scan says so and has nothing; nothing is raised.
    """
    wanted = frozenset(datasets)
    with store.ledger.read() as tx:
        settled = all_settled(tx)
    look = _Look(store, url, wanted, everywhere, settled)
    try:
        place = _quick_storage(store, url)
        for entry in _entries(place, sorted(wanted), look):
            look.take(entry)
    except StorageError as error:
        return LandingScan((), (f"landing cannot be looked at: {error}",), answered=False)
    return look.scan()


def settled_object(file: LandingFile) -> SettledFile:
    """Return as what an object is remembered that stays although it is dealt with."""
    return SettledFile(file.dataset, file.path.name, file.bytes, 0, file.version)


def version_of(entry: Entry) -> str:
    """Return what is another one as soon as the object's content is: its ETag, spelt alike in all answers."""
    return (entry.version or str(entry.modified_at)).removeprefix("W/").strip('"')


def _quick_storage(store: Store, url: ObjectUrl) -> ObjectStorage:
    storage = storage_at(hurried(store.settings), url)
    assert isinstance(storage, ObjectStorage)
    return storage


def _entries(place: ObjectStorage, wanted: list[str], look: _Look) -> Iterator[Entry]:
    """List everything in one go, or if some key does not let itself be listed, as much as there is to be had."""
    prefix = wanted[0] if len(wanted) == 1 and not look.everywhere else ""
    try:
        found = list(place.entries(prefix))
    except UnlistableKey as error:
        look.problems.append(
            f"in {look.url} is a key with an empty part, '.' or '..' in it, which cannot be listed, and each dataset "
            f"has to be listed by itself until it is gone ({error.reason}); delete it or write it again under "
            "another name"
        )
        for dataset in wanted:
            yield from _entries_of_one(place, dataset, look)
    else:
        yield from found


def _entries_of_one(place: ObjectStorage, dataset: str, look: _Look) -> list[Entry]:
    try:
        return place.folder(dataset)
    except UnlistableKey:
        pass
    try:
        found = list(place.entries(dataset, after=f"{dataset}/{_BEHIND_UNLISTABLE}"))
    except UnlistableKey as error:
        look.problems.append(
            f"{dataset}: its files wait, because {look.url / dataset} cannot be listed: {error.reason}"
        )
        return []
    look.problems.append(
        f"{dataset}: such a key is in its folder; its files whose names begin with a space or one of !\"#$%&'()*+,- "
        "wait until it is gone"
    )
    return found
