"""Alembic's entry point: run the migrations in the transaction that the ledger has opened."""

from alembic import context

from timestore_pipeline.ledger.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
