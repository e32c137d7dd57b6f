"""``python -m timestore_pipeline.demo``."""

import sys

from timestore_pipeline.demo.run import main

sys.exit(main())
