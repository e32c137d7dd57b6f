"""What the runs of a warm code server have imported before they start: Dagster, the definitions, and what they use.

The threads that pyarrow and deltalake start when they are imported only give memory back: a run does without them.
"""

import pyarrow as pa

import timestore_pipeline.building.flush
import timestore_pipeline.definitions
import timestore_pipeline.metrics.pushgateway
import timestore_pipeline.staging.ingest

# Looks for pandas, the first time that it makes an array of Python values.
pa.array([0])
timestore_pipeline.definitions.defs().get_repository_def()
