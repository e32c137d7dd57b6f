"""The folder of a table: what its log says."""

from __future__ import annotations

import json
from pathlib import Path

from timestore_pipeline.storage.local import LocalStorage
from timestore_pipeline.storage.table_folder import log_actions, log_key


def test_a_text_in_the_log_may_have_whatever_breaks_lines_elsewhere(tmp_path: Path):
    actions = [{"add": {"stats": "one\u2028two\x85three\u2029\v\f\x1c"}}, {"commitInfo": {}}]
    lines = "".join(json.dumps(action, ensure_ascii=False) + "\n" for action in actions)
    place = LocalStorage(tmp_path)
    place.create(log_key(0), lines.encode())

    assert log_actions(place, 0) == actions
