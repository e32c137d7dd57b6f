"""README and tutorial do what they say, as a newcomer would do it: their blocks one after the other, in a shell."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from timestore_pipeline_tests.docs.pages import DOCS, ROOT
from timestore_pipeline_tests.ports import unused_port

pytestmark = [pytest.mark.process, pytest.mark.long]

_BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_END = "== end of block\n"


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell program in which ``timestore`` is the command of this checkout; it ends at the first error."""
    command = folder / "bin" / "timestore"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m timestore_pipeline.cli "$@"\n')
    command.chmod(0o755)
    program = f'set -e\nPATH="{command.parent}:$PATH"\n{program}'
    return subprocess.run(["sh", "-c", program], cwd=folder, capture_output=True, text=True, check=False)


def test_each_block_of_the_tutorial_works_and_prints_what_the_page_shows(tmp_path: Path):
    blocks = _BLOCK.findall((DOCS / "tutorial.md").read_text(encoding="utf-8"))
    program = "".join(f"{text}printf '{_END}'\n" for kind, text in blocks if kind == "sh")

    finished = run(program, tmp_path)

    assert finished.returncode == 0, finished.stdout + finished.stderr
    printed = iter(finished.stdout.split(_END))
    said = ""
    for kind, text in blocks:
        if kind == "sh":
            said = next(printed)
        else:
            assert [line for line in text.splitlines() if line not in said] == [], said


@pytest.mark.server
def test_the_commands_of_the_readme_work_on_a_clone(tmp_path: Path, program: Callable[[str], str]):
    program("curl")
    shutil.copy(ROOT / "datasets.yaml", tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    blocks = [text for kind, text in _BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")) if kind == "sh"]
    landed, looked, posted = (text for text in blocks if not text.startswith("make "))
    address = f"127.0.0.1:{unused_port()}"
    served = posted.replace("timestore serve &", f"timestore serve --port {address.rpartition(':')[2]} &\nserver=$!")
    served = served.replace("127.0.0.1:8640", address).replace("curl ", "curl -sS --retry 60 --retry-connrefused ")
    own = 'PATH="$PWD/bin:$PATH"\n'

    finished = run(f"{landed}{own}timestore ingest\n{looked}{served}kill $server\nwait $server\n", tmp_path)

    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "26,115" in finished.stdout
    assert '"rows":1' in finished.stdout.replace(" ", "")
