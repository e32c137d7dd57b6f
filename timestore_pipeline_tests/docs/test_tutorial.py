"""The tutorial does what it says, as a newcomer would do it: its blocks one after the other, in a shell."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from timestore_pipeline_tests.docs.pages import DOCS

pytestmark = [pytest.mark.process, pytest.mark.long]

_BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_each_block_works_and_prints_what_the_page_shows(tmp_path: Path):
    command = tmp_path / "bin" / "timestore"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m timestore_pipeline.cli "$@"\n')
    command.chmod(0o755)
    blocks = _BLOCK.findall((DOCS / "tutorial.md").read_text(encoding="utf-8"))
    program = "set -e\n" + "".join(f"{text}echo '== end of block'\n" for kind, text in blocks if kind == "sh")

    finished = subprocess.run(
        ["sh", "-c", f'PATH="{command.parent}:$PATH"\n{program}'],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert finished.returncode == 0, finished.stdout + finished.stderr
    printed = iter(finished.stdout.split("== end of block\n"))
    said = ""
    for kind, text in blocks:
        if kind == "sh":
            said = next(printed)
        else:
            assert [line for line in text.splitlines() if line not in said] == [], said
