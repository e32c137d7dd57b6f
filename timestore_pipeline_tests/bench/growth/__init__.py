"""How cost grows: with datasets, with history, with table versions, with processes.

``python -m timestore_pipeline_tests.bench --only growth`` measures; what was measured is kept in ``docs/growth.json``,
from which the block "How cost grows" of ``docs/scaling.md`` and its pictures are made.
"""
