"""A producer on a host: stages every ``<dataset>__<batch>.arrow`` that appears in a folder, as often as it takes.

``python -m timestore_pipeline_tests.distributed.producer FOLDER``; it ends once there is a file ``END`` and nothing
is left to stage. What has been acknowledged is renamed to ``….done``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pyarrow as pa

from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store


def main(folder: Path) -> None:
    """Stage until all is staged."""
    while True:
        ended = (folder / "END").exists()
        waiting = sorted(folder.glob("*.arrow"))
        if waiting:
            try:
                with Store.open() as store:
                    for path in waiting:
                        dataset, batch_id = path.stem.split("__", 1)
                        stage(store, dataset, pa.ipc.open_file(str(path)).read_all(), batch_id=batch_id)
                        path.rename(path.with_suffix(".done"))
            except Exception as error:
                print(f"{type(error).__name__}: {error}", flush=True)
                time.sleep(0.5)
        elif ended:
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
