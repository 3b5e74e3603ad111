"""Alembic's environment: runs on the connection it is given, else on the URL of the home that SCOPEBASE_HOME names."""

from alembic import context
from sqlalchemy import Connection, create_engine, pool

import schema.lab
import schema.steer  # noqa: F401 - their tables belong to the metadata
from schema.settings import Settings
from schema.tables import Base


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    url = context.config.get_main_option("sqlalchemy.url") or Settings.read().database_url
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        run(connection)
        connection.commit()
