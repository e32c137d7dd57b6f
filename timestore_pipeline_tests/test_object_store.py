"""The S3 server that tests rest on keeps S3's promises, and the proxy in front of it spoils what it is told to."""

from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from timestore_pipeline_tests.fault_proxy import Effect, Fault, denied, slow_down
from timestore_pipeline_tests.object_store import Bucket

pytestmark = pytest.mark.server

CREATE_ONLY = {"If-None-Match": "*"}
# The server asks for a signature, and does not look at it.
_SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, Signature=0"}


def ask(
    bucket: Bucket, method: str, key: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", bucket.proxy.port, timeout=1)
    try:
        connection.request(method, f"/{bucket.name}/{key}", body, {**_SIGNED, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_of_many_who_create_a_key_at_once_one_succeeds(s3_bucket: Bucket) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda n: ask(s3_bucket, "PUT", "key", b"%d" % n, CREATE_ONLY)[0], range(40))

    assert sorted(answers) == [200, *[412] * 39]


def test_a_table_is_written_and_read_with_one_commit_per_version(s3_bucket: Bucket) -> None:
    url = f"{s3_bucket.url}/table"
    rows = pa.table({"number": [1, 2, 3]})

    write_deltalake(url, rows)
    write_deltalake(url, rows, mode="append")

    assert DeltaTable(url).to_pyarrow_table().num_rows == 6
    commits = s3_bucket.proxy.passed("PUT", "table/_delta_log/*.json")
    assert [request.headers.get("if-none-match") for request in commits] == ["*", "*"]


@pytest.mark.parametrize(
    ("effect", "applied"),
    [
        (Effect.DROP_BEFORE, False),
        (Effect.DROP_AFTER, True),
        (Effect.HANG, False),
        (Effect.HANG_AFTER, True),
        (Effect.ERROR, False),
        (Effect.ERROR_AFTER, True),
    ],
)
def test_a_spoilt_put_was_carried_out_or_not_as_the_fault_says(
    s3_bucket: Bucket, effect: Effect, applied: bool
) -> None:
    s3_bucket.proxy.add(Fault(effect, "PUT", "folder/*"))

    try:
        answered = ask(s3_bucket, "PUT", "folder/key", b"content")[0]
    except (TimeoutError, ConnectionError, http.client.HTTPException):
        answered = 0

    assert answered == (500 if effect in {Effect.ERROR, Effect.ERROR_AFTER} else 0)
    assert s3_bucket.keys() == (["folder/key"] if applied else [])
    assert ask(s3_bucket, "PUT", "folder/other", b"content")[0] == 200, "only the first is spoilt"


def test_an_answer_trickles_in_or_ends_in_its_middle(s3_bucket: Bucket) -> None:
    s3_bucket.put("key", b"x" * 2_000)
    s3_bucket.proxy.add(Fault(Effect.TRICKLE, "GET"), Fault(Effect.CUT, "GET"))

    assert ask(s3_bucket, "GET", "key") == (200, b"x" * 2_000)
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        ask(s3_bucket, "GET", "key")


def test_faults_are_chosen_by_operation_key_and_number_and_requests_counted(s3_bucket: Bucket) -> None:
    proxy = s3_bucket.proxy
    changed = Fault(Effect.CALL, "GET", call=lambda request: s3_bucket.put(request.key, b"new"), times=None)
    proxy.add(slow_down("GET", key="a/*", skip=1, times=2), denied("LIST"), changed)
    s3_bucket.put("a/1 %ü", b"old")

    statuses = [ask(s3_bucket, "GET", "a/1%20%25%C3%BC") for _ in range(4)]

    assert [status for status, _ in statuses] == [200, 503, 503, 200]
    assert statuses[0] == (200, b"new")
    assert b"<Code>SlowDown</Code>" in statuses[1][1]
    assert ask(s3_bucket, "GET", "?list-type=2&prefix=a/")[0] == 403
    assert len(proxy.passed("GET", "a/1 %ü")) == 4
    assert [request.status for request in proxy.passed("LIST", "a/")] == [403]
