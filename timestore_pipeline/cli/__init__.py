"""The ``timestore`` command: look at an installation, query it and do by hand what its sensors do.

What a script may read goes to stdout, what is for people only to stderr, and the exit code says how it went
(see :class:`ExitCode`). Settings come from the environment and from nowhere else.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from timestore_pipeline.cli.exit_codes import ExitCode, exit_code_of
from timestore_pipeline.errors import TimestoreError

__all__ = ["ExitCode", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (by default those of the process) and return its exit code."""
    from timestore_pipeline.cli.output import inert_stderr

    with inert_stderr():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    from timestore_pipeline.cli.commands import app
    from timestore_pipeline.cli.output import warn

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("timestore: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        app(args=None if arguments is None else list(arguments), prog_name="timestore")
    except TimestoreError as error:
        warn(str(error))
        return exit_code_of(error)
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else ExitCode.DONE
    finally:
        logging.getLogger().removeHandler(handler)
    return ExitCode.DONE
