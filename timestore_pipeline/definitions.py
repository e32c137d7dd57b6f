"""What Dagster loads: the installation of the environment (short, because Dagster loads it and it decides nothing)."""

from __future__ import annotations

import dagster as dg

from timestore_pipeline.orchestration.location import installed_definitions
from timestore_pipeline.settings import load_settings


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions of the installation.

    Raises:
        SettingsError, DatasetsFileError: the environment or the datasets file is not usable; says what to correct.
    """
    return installed_definitions(load_settings())
