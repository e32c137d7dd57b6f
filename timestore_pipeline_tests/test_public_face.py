"""What others rely on by name is what it was."""

from __future__ import annotations

import pytest

from timestore_pipeline_tests.public_face import PINNED, lines


@pytest.mark.long
def test_the_public_face_is_what_it_was():
    now, pinned = lines(), PINNED.read_text(encoding="utf-8").splitlines()

    assert [line for line in pinned if line not in now] == [], "gone: somebody may rely on it"
    assert now == pinned, "python -m timestore_pipeline_tests.public_face writes what came"
