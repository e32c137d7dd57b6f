"""``python -m timestore_pipeline.cli`` is the ``timestore`` command."""

import sys

from timestore_pipeline.cli import main

sys.exit(main())
