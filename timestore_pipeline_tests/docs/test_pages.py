"""Every page says what it is for, its links and paths lead somewhere, and lists that claim to be whole are."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.ledger.states import BuildKind
from timestore_pipeline_tests.docs.pages import DOCS, PAGES, ROOT, anchor, page_id, sections, table, without_code
from timestore_pipeline_tests.test_architecture import LAYER_OF

ARCHITECTURE = DOCS / "architecture.md"
RECORDS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
# Pages for who changes the code: they name its files.
OF_THE_CODE = [ROOT / "CONTRIBUTING.md", ARCHITECTURE, *sorted((DOCS / "internals").glob("*.md"))]
# Where a path that such a page names may begin.
_ROOTS = [ROOT, ROOT / "timestore_pipeline", ROOT / "timestore_pipeline_tests", DOCS]
_PATH = re.compile(r"[\w.*-]+(?:/[\w.*-]+)*(?:/|\.(?:py|md|yaml|yml|toml|txt|json))")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def named_paths(text: str) -> list[str]:
    """Return what stands in backticks and is written like a file or a folder; ``file.py: name`` names the file."""
    quoted = re.findall(r"`([^`\n]+)`", without_code(text))
    return [word for quote in quoted if _PATH.fullmatch(word := quote.split(": ")[0])]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_a_page_opens_with_what_it_is_for(page: Path):
    first = re.sub(r"<!--.*?-->", "", text_of(page), flags=re.DOTALL).strip()
    heading, _, rest = first.partition("\n\n")

    assert heading.startswith("# ")
    assert "\n" not in heading
    assert re.match(r"[A-Z*`]", rest), f"{rest[:40]!r} is no sentence"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"\s+", " ", without_code(text_of(page)))):
        if "://" in target:
            continue
        path, _, section = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if section:
            assert section in {anchor(heading) for heading, _ in sections(without_code(text_of(linked)))}, target


@pytest.mark.parametrize("page", OF_THE_CODE, ids=page_id)
def test_paths_that_are_named_exist(page: Path):
    missing = [path for path in named_paths(text_of(page)) if not any(list(root.glob(path)) for root in _ROOTS)]

    assert missing == []


def test_a_path_is_told_from_other_words():
    named = named_paths("`ledger/`, `docs/cli.md`, `table/delta.py: open_table`, `timestore`, `a/b`, `*.tmp`, `x y.py`")

    assert named == ["ledger/", "docs/cli.md", "table/delta.py"]


def test_every_page_is_in_the_index_or_in_one_that_the_index_names():
    linked = {
        (index.parent / target.partition("#")[0]).resolve()
        for index in (DOCS / "README.md", ARCHITECTURE, DOCS / "decisions" / "README.md")
        for target in re.findall(r"\]\(([^)\s]+)\)", text_of(index))
    }

    assert [page_id(page) for page in PAGES if page not in linked | {DOCS / "README.md"}] == []


def test_the_architecture_can_be_read_in_one_sitting():
    assert len(text_of(ARCHITECTURE).splitlines()) <= 200


def test_the_folders_are_those_of_the_package_from_the_lowest_up():
    rooms = dict(sections(text_of(ARCHITECTURE)))["The folders"]
    lines = [[Path(name).stem for name in re.findall(r"`([\w./]+)`", row[0])] for row in table(rooms)]
    heights = [[LAYER_OF[part] for part in line] for line in lines]

    assert {part for line in lines for part in line} == set(LAYER_OF)
    assert all(max(lower) <= min(higher) for lower, higher in pairwise(heights))


def test_the_glossary_has_the_words_of_the_design_in_their_order():
    words = [row[0] for row in table(text_of(DOCS / "glossary.md"))]
    wanted = {row[0] for row in table(dict(sections(text_of(ARCHITECTURE)))["Words"])}
    wanted |= {each.value for each in Trigger} | {each.value for each in BuildKind}

    assert words == sorted(words, key=str.lower)
    assert wanted <= {word for each in words for word in each.split(", ")}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name[:4])
def test_a_decision_states_context_decision_and_consequences(record: Path):
    text = text_of(record)
    number = int(record.name[:4])

    assert text.startswith(f"# {number}. ")
    assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
    title = text.splitlines()[0].partition(". ")[2]
    assert f"\n{number}. [{title}]({record.name})\n" in text_of(DOCS / "decisions" / "README.md")


def test_decisions_are_numbered_without_a_gap():
    assert [int(record.name[:4]) for record in RECORDS] == list(range(1, len(RECORDS) + 1))
