"""The Grafana dashboard: ``docs/observability/grafana/timestore-dashboard.json`` is made from the panels here.

Its rows answer in the order in which people ask: is anything lost or late, which dataset, why, what to do.
"""

from docs.build.dashboard.grafana import dashboard, queries

__all__ = ["dashboard", "queries"]
