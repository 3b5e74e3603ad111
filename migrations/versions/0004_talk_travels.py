"""Votes and comments travel in packs: each says in which home it was made, and when it came here."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLES = ("label_votes", "label_comments")


def upgrade() -> None:
    for table in TABLES:
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column("home", sa.String(length=64), nullable=False, server_default=""))
            batch.add_column(sa.Column("heard_at", sa.DateTime(timezone=True), nullable=True))
        op.execute(f"UPDATE {table} SET heard_at = at")
    with op.batch_alter_table("label_votes") as batch:
        batch.alter_column("home", server_default=None)
        batch.alter_column("heard_at", nullable=False)
        batch.drop_constraint("pk_label_votes", type_="primary")
        batch.create_primary_key("pk_label_votes", ["label_id", "voter", "home"])
    with op.batch_alter_table("label_comments") as batch:
        batch.add_column(sa.Column("uid", sa.String(length=64), nullable=True))
    connection = op.get_bind()
    for row in connection.execute(sa.text("SELECT id FROM label_comments")).all():
        named = {"id": row.id, "uid": uuid.uuid4().hex}
        connection.execute(sa.text("UPDATE label_comments SET uid = :uid WHERE id = :id"), named)
    with op.batch_alter_table("label_comments") as batch:
        batch.alter_column("home", server_default=None)
        batch.alter_column("heard_at", nullable=False)
        batch.alter_column("uid", nullable=False)
        batch.create_unique_constraint("uq_label_comments_label_id", ["label_id", "uid"])


def downgrade() -> None:
    """What came from other homes, and votes that were taken back, have no place in the tables before."""
    op.execute("DELETE FROM label_votes WHERE home <> '' OR value = 0")
    op.execute("DELETE FROM label_comments WHERE home <> ''")
    total = "SELECT COALESCE(SUM(value), 0) FROM label_votes WHERE label_id = labels.id"
    op.execute(f"UPDATE labels SET votes = ({total})")
    with op.batch_alter_table("label_votes") as batch:
        batch.drop_constraint("pk_label_votes", type_="primary")
        batch.create_primary_key("pk_label_votes", ["label_id", "voter"])
    with op.batch_alter_table("label_comments") as batch:
        batch.drop_constraint("uq_label_comments_label_id", type_="unique")
        batch.drop_column("uid")
    for table in TABLES:
        with op.batch_alter_table(table) as batch:
            batch.drop_column("heard_at")
            batch.drop_column("home")
