"""Processes of tests, forked from one server that has imported all that they use: see ``forked_from``.

Such a process costs some hundredths of a CPU-second before it does any work, one that is spawned more than one second.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["timestore_pipeline_tests.forked_from"])


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of processes that have the environment of now."""
    return ProcessPoolExecutor(workers, mp_context=CONTEXT, initializer=take_environment, initargs=(dict(os.environ),))


def take_environment(environment: Mapping[str, str]) -> None:
    """Put ``environment`` in the place of the one that the server of these processes was started with."""
    os.environ.clear()
    os.environ.update(environment)
