"""Text of others is text: whatever it holds, what is shown says it, and nothing in it acts."""

from __future__ import annotations

import io
import json
import logging
import re
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import timestore_pipeline
from timestore_pipeline.errors import BatchRejected
from timestore_pipeline.inert import as_code, as_entry, json_escaped, log_named, unlinked, visible, visible_lines
from timestore_pipeline_tests.builders import FORGING

any_text = st.text(st.characters(), max_size=40) | st.text("`\\ \n\x1b\u202e&;#<>[]()!|*_~w.:/ahtp", max_size=40)


@given(any_text)
def test_what_is_visible_is_one_line_of_printable_characters(text: str):
    assert visible(text).isprintable()
    assert visible(visible(text)) == visible(text)
    assert text.isprintable() is (visible(text) == text)


@given(any_text)
def test_lines_stay_lines(text: str):
    assert visible_lines(text).split("\n") == [visible(line) for line in text.split("\n")]


@given(any_text)
def test_only_the_first_line_of_an_entry_begins_at_the_left(text: str):
    first, *more = as_entry(text).split("\n")
    assert first == visible(text.split("\n", maxsplit=1)[0])
    assert all(line.startswith(" ") and line.isprintable() for line in more)
    assert as_entry(as_entry(text)) == as_entry(text)


def test_nothing_that_is_logged_looks_like_another_entry():
    written = io.StringIO()
    log = log_named("timestore_pipeline.test")
    handler = logging.StreamHandler(written)
    log.addHandler(handler)
    try:
        log.warning("%s: 100 %% of %s", "weather", FORGING)
        try:
            raise ValueError(FORGING) from BatchRejected("weather", FORGING, FORGING)
        except ValueError:
            log.exception("it could not be %r", FORGING)
    finally:
        log.removeHandler(handler)

    lines = written.getvalue().splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        f"weather: 100 % of {visible(FORGING.partition(chr(10))[0])}",
        f"it could not be {visible(repr(FORGING))}",
    ]
    assert "ValueError" in written.getvalue()
    assert all(line.isprintable() for line in lines)


def test_a_traceback_ends_in_an_entry():
    printed = "".join(traceback.format_exception_only(BatchRejected("weather", FORGING, FORGING)))

    assert not any(line.startswith("ERROR") for line in printed.splitlines())


def test_every_module_logs_entries():
    for path in Path(timestore_pipeline.__file__).parent.rglob("*.py"):
        if path.name != "inert.py":
            assert "getLogger(__name__)" not in path.read_text(encoding="utf-8"), f"{path}: use log_named()"


@given(st.dictionaries(any_text, any_text | st.lists(any_text), max_size=3))
def test_escaped_json_means_the_same(value: dict):
    document = json.dumps(value, indent=2, ensure_ascii=False)

    escaped = json_escaped(document)

    assert json.loads(escaped) == value
    assert all(line.isprintable() for line in escaped.split("\n"))


@given(any_text)
def test_code_is_one_code_span_and_nothing_else(text: str):
    """As CommonMark says: it ends with the first run of as many backticks as it begins with."""
    code = as_code(text)

    fence = re.match("`+", code)
    assert fence
    runs = [run.span() for run in re.finditer("`+", code) if len(run[0]) == len(fence[0])]
    assert runs == [(0, len(fence[0])), (len(code) - len(fence[0]), len(code))]
    inside = code[len(fence[0]) : -len(fence[0])]
    assert inside in (f" {visible(text)} ", " ")
    assert "\n" not in code


@pytest.mark.parametrize("text", ["http://a.example/x", "HTTPS://1.2.3.4", "see http://x.org, and https://y.org"])
def test_no_address_is_found_in_plain_text(text: str):
    assert not re.search(r"https?://", unlinked(text), re.IGNORECASE)
    assert unlinked(text).replace("[:]", ":") == text
