"""State machines that work on a store of their own."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis.stateful import RuleBasedStateMachine

from timestore_pipeline_tests.postgresql import fresh_ledger


class MachineOnALedger(RuleBasedStateMachine):
    """A state machine with a folder ``root`` and a fresh ledger of the kind ``ledger``, which it has for itself."""

    ledger = "sqlite"

    def __init__(self) -> None:
        super().__init__()
        self._resources = ExitStack()
        self.root = Path(self._resources.enter_context(tempfile.TemporaryDirectory()))
        self._resources.enter_context(fresh_ledger(self.ledger))

    def teardown(self) -> None:
        """Give folder and ledger back; what works on them is closed before."""
        self._resources.close()
