"""Alembic's entry: upgrades the database on the connection that ``database.open_database`` hands over."""

from alembic import context

from cipherward.site_agent.state.metadata import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
