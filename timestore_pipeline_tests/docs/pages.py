"""The pages that people read, and how Markdown makes anchors of their headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def page_id(page: Path) -> str:
    """Return the name under which a test shows a page."""
    return str(page.relative_to(ROOT))


def without_code(text: str) -> str:
    """Return a page without its fenced blocks, in which a ``#`` begins a comment."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Go through the headings of a page with what stands below each."""
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def anchor(heading: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def table(text: str) -> list[list[str]]:
    """Return the cells of the first table of a page, without its two lines of headings."""
    lines = [line for line in text.partition("\n|")[2].partition("\n\n")[0].splitlines() if line.endswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
