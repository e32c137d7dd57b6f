"""Alembic's entry point: run the migrations in the transaction that the ledger has opened."""

from alembic import context

from timestore_pipeline.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
