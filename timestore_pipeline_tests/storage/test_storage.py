"""What a directory and an object store promise alike, and what an object store does when it is not well."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from timestore_pipeline.errors import ObjectMissing, StorageError, StorageRefused, StorageUnavailable
from timestore_pipeline.model.locations import ObjectUrl, parse_url
from timestore_pipeline.storage import Storage, open_storage
from timestore_pipeline.storage import objects as objects_module
from timestore_pipeline_tests.fault_proxy import Effect, Fault, denied, slow_down
from timestore_pipeline_tests.object_store import CREDENTIALS, Bucket

pytestmark = pytest.mark.server

OpenObjects = Callable[..., Storage]


@pytest.fixture
def open_objects(s3_bucket: Bucket, tmp_path: Path) -> OpenObjects:
    """Opens the same place in the bucket again and again, by default with a cache that all of them share."""

    def open_it(cache: str = "cache", **given: float) -> Storage:
        # Patient, for requests are counted: one that takes long here is not to be made again.
        patience: dict[str, float] = {"cache_bytes": 1 << 30, "timeout_seconds": 120, "patience_seconds": 240, **given}
        return open_storage(parse_url(f"{s3_bucket.url}/some/place"), cache=tmp_path / cache, **patience)  # pyright: ignore[reportArgumentType]

    return open_it


@pytest.fixture(params=["directory", "object store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "directory":
        yield open_storage(tmp_path / "files", cache=tmp_path / "cache", cache_bytes=0)
    else:
        yield request.getfixturevalue("open_objects")()


def put(storage: Storage, key: str, content: bytes) -> None:
    scratch = storage.scratch(key)
    scratch.write_bytes(content)
    storage.put(scratch, key)
    assert not scratch.exists()


def test_what_was_put_is_there_whole_under_its_key(storage: Storage):
    before = time.time()
    put(storage, "a/one.bin", b"one")
    put(storage, "a/b/two é.bin", b"")
    put(storage, "c.bin", b"three")

    assert storage.fetch("a/one.bin").read_bytes() == b"one"
    assert storage.fetch("a/b/two é.bin").read_bytes() == b""
    assert storage.fetch("a/one.bin").is_relative_to(storage.root)
    assert storage.size("c.bin") == 5
    assert storage.size("d.bin") is None
    assert storage.size("c.bin/d.bin") is None
    assert {entry.key: entry.bytes for entry in storage.entries()} == {"a/one.bin": 3, "a/b/two é.bin": 0, "c.bin": 5}
    assert [entry.key for entry in storage.entries("a/b/")] == ["a/b/two é.bin"]
    assert list(storage.entries("nothing/")) == []
    assert all(abs(entry.modified_at / 1e6 - before) < 60 for entry in storage.entries())
    assert storage.shown("a/one.bin").startswith(storage.location)


def test_what_is_asked_of_a_place_has_one_answer(storage: Storage):
    put(storage, "a/one.bin", b"one")
    put(storage, "a/b/two.bin", b"")
    put(storage, "c.bin", b"three")

    assert storage.names() == ["a", "c.bin"]
    assert storage.names("a") == ["b", "one.bin"]
    assert storage.names("nothing") == []
    assert [storage.sizes()(key) for key in ("a/one.bin", "a/b/two.bin", "d.bin")] == [3, 0, None]
    assert [storage.content(key) for key in ("a/one.bin", "a/b/two.bin")] == [b"one", b""]
    found = storage.entry("c.bin")
    assert found is not None
    assert (found.key, found.bytes) == ("c.bin", 5)
    assert storage.entry("d.bin") is None
    with pytest.raises(FileNotFoundError):
        storage.content("d.bin")


def test_nothing_is_left_of_files_that_were_removed(storage: Storage):
    put(storage, "a/b/one.bin", b"one")
    put(storage, "a/two.bin", b"two")
    storage.delete("a/b/one.bin")

    storage.sync("a", "*.bin")
    storage.prune("a")
    assert storage.names() == ["a"]
    assert storage.names("a") == ["two.bin"]
    storage.delete("a/two.bin")
    storage.prune("a")
    assert storage.names() == []


def test_what_a_dead_writer_left_in_a_directory_is_found_and_removed(tmp_path: Path):
    storage = open_storage(tmp_path, cache=tmp_path / "cache", cache_bytes=0)
    (tmp_path / "a" / ".1.tmp").mkdir(parents=True)
    (tmp_path / "a" / ".1.tmp" / "part").write_bytes(b"1")
    (tmp_path / "a" / "0.json#2").write_bytes(b"12")

    assert [(entry.key, entry.bytes) for entry in storage.leftovers("a/.*.tmp")] == [("a/.1.tmp", 0)]
    assert [(entry.key, entry.bytes) for entry in storage.leftovers("a/*.json#*")] == [("a/0.json#2", 2)]
    storage.remove_folder("a/.1.tmp")
    assert storage.names("a") == ["0.json#2"]


def test_a_folder_that_is_not_there_cannot_be_made_durable(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        open_storage(tmp_path, cache=tmp_path, cache_bytes=0).sync("gone", "*.json")


def test_files_are_moved_and_removed_and_both_may_be_done_again(storage: Storage):
    put(storage, "a/one.bin", b"one")
    put(storage, "a/two.bin", b"two")

    for _ in range(2):
        storage.rename("a/one.bin", "aside/one.bin")
        storage.delete("a/two.bin", "a/never.bin")

    assert [entry.key for entry in storage.entries()] == ["aside/one.bin"]
    assert storage.fetch("aside/one.bin").read_bytes() == b"one"
    storage.delete("aside/one.bin")
    assert list(storage.entries()) == []
    with pytest.raises(FileNotFoundError):
        storage.rename("aside/one.bin", "a/one.bin")


def test_an_object_is_never_replaced(open_objects: OpenObjects, s3_bucket: Bucket):
    put(open_objects("one"), "key", b"first")
    put(open_objects("two"), "key", b"first")
    with pytest.raises(FileExistsError, match="another object"):
        put(open_objects("three"), "key", b"other")

    assert s3_bucket.get("some/place/key") == b"first"


def test_of_many_that_put_one_key_at_once_one_wins_and_all_others_are_told(open_objects: OpenObjects):
    def attempt(number: int) -> bool:
        try:
            put(open_objects(str(number)), "key", b"%d" % number)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))

    assert won.count(True) == 1
    assert open_objects("reader").fetch("key").read_bytes() == b"%d" % won.index(True)


@pytest.mark.parametrize("size", [3, 40_000])
def test_objects_in_several_parts_are_the_same(
    open_objects: OpenObjects, s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, size: int
):
    monkeypatch.setattr(objects_module, "_WHOLE_BYTES", 2)
    monkeypatch.setattr(objects_module, "_PART_BYTES", 16_384 if size < 16_384 else 5 << 20)
    content = os.urandom(size)
    put(open_objects("one"), "key", content)
    monkeypatch.setattr(objects_module, "_PART_BYTES", 16_384)
    with pytest.raises(FileExistsError):
        put(open_objects("two"), "key", content[:-1] + b"?")

    assert s3_bucket.get("some/place/key") == content
    assert open_objects("three").fetch("key").read_bytes() == content


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(Effect.ERROR, times=2), id="500"),
        pytest.param(Fault(Effect.ERROR_AFTER), id="500 though done"),
        pytest.param(slow_down(times=3), id="SlowDown"),
        pytest.param(Fault(Effect.ERROR, status=429, code="TooManyRequests"), id="429"),
        pytest.param(Fault(Effect.DROP_BEFORE, times=2), id="dropped"),
        pytest.param(Fault(Effect.DROP_AFTER), id="dropped though done"),
        pytest.param(Fault(Effect.HANG), id="time-out"),
        pytest.param(Fault(Effect.HANG_AFTER), id="time-out though done"),
    ],
)
def test_what_fails_for_the_moment_is_done_again(open_objects: OpenObjects, s3_bucket: Bucket, fault: Fault):
    impatience = {"timeout_seconds": 0.5} if fault.effect in {Effect.HANG, Effect.HANG_AFTER} else {}
    storage = open_objects(**impatience)
    operations = ("PUT", "GET", "HEAD", "LIST", "COPY", "DELETE_MANY")
    faults = [replace(fault, operation=operation) for operation in operations]
    s3_bucket.put("some/place/gone", b"gone")

    with s3_bucket.proxy.spoilt(*faults):
        put(storage, "a/key", b"content")
        assert open_objects("elsewhere", **impatience).fetch("a/key").read_bytes() == b"content"
        assert storage.size("a/key") == 7
        storage.rename("a/key", "b/key")
        storage.delete("gone")
        assert [entry.key for entry in storage.entries()] == ["b/key"]

    assert [each.hits for each in faults] == [fault.times] * len(operations)
    assert s3_bucket.get("some/place/b/key") == b"content"


def test_an_answer_that_breaks_off_is_asked_for_again(open_objects: OpenObjects, s3_bucket: Bucket):
    content = os.urandom(100_000)
    put(open_objects(), "key", content)
    cut = Fault(Effect.CUT, "GET", times=2)

    with s3_bucket.proxy.spoilt(cut):
        assert open_objects("elsewhere").fetch("key").read_bytes() == content
    assert cut.hits == 2


def test_a_long_listing_goes_on_after_an_error_where_it_was(
    s3_bucket: Bucket, open_objects: OpenObjects, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(objects_module, "_LISTED_AT_ONCE", 10)
    monkeypatch.setattr(s3_bucket.proxy, "page", 10)
    for number in range(45):
        s3_bucket.put(f"some/place/x/{number:02}", "x")
    storage = open_objects()

    with s3_bucket.proxy.spoilt(Fault(Effect.ERROR, "LIST", skip=2, times=2)):
        keys = [entry.key for entry in storage.entries("x/")]

    assert keys == [f"x/{number:02}" for number in range(45)]
    assert 7 <= len(s3_bucket.proxy.passed("LIST")) <= 8


def test_a_store_that_stays_away_is_given_up_with_an_error_that_says_what_to_do(
    open_objects: OpenObjects, s3_bucket: Bucket
):
    storage = open_objects(patience_seconds=0.3)
    scratch = storage.scratch("key")
    scratch.write_bytes(b"content")

    with s3_bucket.proxy.spoilt(slow_down(times=None)), pytest.raises(StorageUnavailable) as caught:
        storage.put(scratch, "key")

    assert re.search(r"PUT s3://test-.*/some/place/key failed \d+ times within 0.3 s: 503.*SlowDown", str(caught.value))
    assert "TIMESTORE_OBJECT_STORE_RETRY_SECONDS" in str(caught.value)
    assert isinstance(caught.value, OSError)
    assert s3_bucket.keys() == []
    assert scratch.read_bytes() == b"content"


def test_a_refusal_is_not_tried_again(open_objects: OpenObjects, s3_bucket: Bucket):
    storage = open_objects()

    with (
        s3_bucket.proxy.spoilt(denied(times=None)),
        pytest.raises(StorageRefused, match=r"403.*AccessDenied") as caught,
    ):
        storage.fetch("key")

    assert len(s3_bucket.proxy.passed()) == 1
    for secret in CREDENTIALS["AWS_SECRET_ACCESS_KEY"], CREDENTIALS["AWS_ACCESS_KEY_ID"], "Signature", "?":
        assert secret not in str(caught.value)


def test_a_missing_object_is_named_and_a_missing_bucket_is_no_missing_object(
    open_objects: OpenObjects, s3_bucket: Bucket, tmp_path: Path
):
    with pytest.raises(ObjectMissing, match=r"s3://test-.*/some/place/key: there is no such object"):
        open_objects().fetch("key")
    elsewhere = open_storage(ObjectUrl("s3", "no-such-bucket"), cache=tmp_path / "cache", cache_bytes=0)

    for ask in (
        lambda: elsewhere.fetch("key"),
        lambda: elsewhere.size("key"),
        lambda: list(elsewhere.entries()),
        lambda: put(elsewhere, "key", b"content"),
    ):
        with pytest.raises(StorageRefused, match="NoSuchBucket"):
            ask()


def test_a_copy_saves_the_way_and_goes_with_its_object(open_objects: OpenObjects, s3_bucket: Bucket):
    storage = open_objects()
    put(storage, "key", b"content")
    s3_bucket.proxy.forget()

    assert open_objects().fetch("key").read_bytes() == b"content"
    assert s3_bucket.proxy.passed() == []

    storage.fetch("key").write_bytes(b"damaged")
    storage.forget("key")
    assert storage.fetch("key").read_bytes() == b"content"
    storage.delete("key")
    with pytest.raises(ObjectMissing):
        storage.fetch("key")


def test_the_cache_keeps_to_its_bound_and_spares_what_was_asked_for_just_now(
    open_objects: OpenObjects, s3_bucket: Bucket, tmp_path: Path
):
    for number in range(8):
        s3_bucket.put(f"some/place/{number}", b"x" * 1_000)
    storage = open_objects(cache_bytes=5_000)
    a_while_ago = time.time() - 3_600
    for number in range(8):
        os.utime(storage.fetch(str(number)), (a_while_ago + number, a_while_ago + number))
    held = storage.fetch("0").open("rb")
    abandoned = storage.scratch("abandoned")
    abandoned.write_bytes(b"x" * 1_000)
    os.utime(abandoned, (a_while_ago - 90_000, a_while_ago - 90_000))

    s3_bucket.put("some/place/last", b"y" * 1_000)
    storage.fetch("last")

    left = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert {"0", "last"} <= set(left)
    assert len(left) <= 5
    assert not abandoned.exists()
    assert held.read() == b"x" * 1_000
    assert storage.fetch("1").read_bytes() == b"x" * 1_000


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("http://example.org/x", "no place for files"),
        ("S3://bucket", "no place for files"),
        ("s3:/bucket/x", "s3://bucket/prefix"),
        ("s3://", "bucket name"),
        ("s3://user:secret@bucket/x", "credentials"),
        ("s3://bucket/x?endpoint=y", "credentials or options"),
        ("s3://bucket/x//y", "empty part"),
        ("s3://bucket/../y", r"'\.\.'"),
        ("s3://bucket/a%41", "%41"),
    ],
)
def test_a_url_that_cannot_be_used_says_why_and_shows_no_secret(text: str, complaint: str):
    with pytest.raises(ValueError, match=complaint) as caught:
        parse_url(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["s3://bucket", "gs://my.bucket_1/a/b", "az://container/a-b"])
def test_urls_are_what_they_say(text: str):
    assert str(parse_url(text)) == text
    assert str(parse_url(f"{text}/")) == text
    assert str(parse_url(text) / "k/v") == f"{text}/k/v"


def test_errors_of_storage_are_both_ours_and_of_the_system():
    assert issubclass(StorageError, OSError)
    assert issubclass(ObjectMissing, FileNotFoundError)
    assert str(ObjectMissing("s3://b/k")) == "s3://b/k: there is no such object"
