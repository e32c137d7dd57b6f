"""Text of others is text: whatever it holds, what is shown says it, and nothing in it acts."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.inert import as_code, json_escaped, unlinked, visible, visible_lines

any_text = st.text(st.characters(), max_size=40) | st.text("`\\ \n\x1b\u202e&;#<>[]()!|*_~w.:/ahtp", max_size=40)


@given(any_text)
def test_what_is_visible_is_one_line_of_printable_characters(text: str):
    assert visible(text).isprintable()
    assert visible(visible(text)) == visible(text)
    assert text.isprintable() is (visible(text) == text)


@given(any_text)
def test_lines_stay_lines(text: str):
    assert visible_lines(text).split("\n") == [visible(line) for line in text.split("\n")]


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
