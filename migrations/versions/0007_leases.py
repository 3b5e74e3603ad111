"""The next shard of a run is found by an index, however many shards there are."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_shards_run_id_state", "shards")
    op.drop_index("ix_shards_dataset_id", "shards")
    op.create_index("ix_shards_of_a_run", "shards", ["run_id", "kind", "state", "ordinal"])
    op.create_index("ix_shards_of_a_dataset", "shards", ["dataset_id", "kind", "state", "ordinal"])


def downgrade() -> None:
    op.drop_index("ix_shards_of_a_dataset", "shards")
    op.drop_index("ix_shards_of_a_run", "shards")
    op.create_index("ix_shards_dataset_id", "shards", ["dataset_id"])
    op.create_index("ix_shards_run_id_state", "shards", ["run_id", "state"])
