"""The ledger → Prometheus series, and their way to a Pushgateway.

Nothing is counted in a process: every picture is absolute and taken from the ledger (invariant 7), so any
process may push, and all push the same truth.
"""

from timestore_pipeline.metrics.projection import collect_metrics, exposition, write_exposition
from timestore_pipeline.metrics.pushgateway import PushResult, push_metrics

__all__ = ["PushResult", "collect_metrics", "exposition", "push_metrics", "write_exposition"]
