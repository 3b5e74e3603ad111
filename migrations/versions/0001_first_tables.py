"""The first tables: models, SAEs, datasets, runs and the shard ledger."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("id_field", sa.String(length=256), nullable=True),
        sa.Column("fields", JSON, nullable=False),
        sa.Column("n_samples", sa.BigInteger(), nullable=False),
        sa.Column("n_chars", sa.BigInteger(), nullable=False),
        sa.Column("n_skipped", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("name", "version", name=op.f("uq_datasets_name")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_datasets_name_sha256", "datasets", ["name", "sha256"], unique=True)

    op.create_table(
        "models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("revision", sa.String(length=80), nullable=False),
        sa.Column("family", sa.String(length=64), nullable=False),
        sa.Column("n_layers", sa.Integer(), nullable=False),
        sa.Column("d_model", sa.Integer(), nullable=False),
        sa.Column("context", sa.Integer(), nullable=True),
        sa.Column("tokenizer_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("name", name=op.f("uq_models_name")),
    )
    op.create_table(
        "settings",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_settings")),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("recipe", JSON, nullable=False),
        sa.Column("recipe_sha256", sa.String(length=64), nullable=False),
        sa.Column("batch_tokens", sa.Integer(), nullable=False),
        sa.Column("versions", JSON, nullable=False),
        sa.Column("counts", JSON, nullable=False),
        sa.Column("finished", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_runs_dataset_id_datasets")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_runs_model_id_models")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("finished", name=op.f("uq_runs_finished")),
        sa.UniqueConstraint("key", name=op.f("uq_runs_key")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_runs_dataset_id"), "runs", ["dataset_id"], unique=False)

    op.create_table(
        "saes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("set_name", sa.String(length=120), nullable=False),
        sa.Column("layer", sa.Integer(), nullable=False),
        sa.Column("release", sa.Text(), nullable=False),
        sa.Column("format", sa.String(length=32), nullable=False),
        sa.Column("activation", sa.String(length=16), nullable=False),
        sa.Column("k", sa.Integer(), nullable=True),
        sa.Column("d_model", sa.Integer(), nullable=False),
        sa.Column("d_sae", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("file_size", sa.BigInteger(), nullable=False),
        sa.Column("file_time", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_saes_model_id_models")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saes")),
        sa.UniqueConstraint("model_id", "layer", "set_name", name=op.f("uq_saes_model_id")),
        sa.UniqueConstraint("name", name=op.f("uq_saes_name")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_saes_sha256"), "saes", ["sha256"], unique=False)

    op.create_table(
        "run_saes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("sae_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_saes_run_id_runs")),
        sa.ForeignKeyConstraint(["sae_id"], ["saes.id"], name=op.f("fk_run_saes_sae_id_saes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run_saes")),
        sa.UniqueConstraint("run_id", "sae_id", name=op.f("uq_run_saes_run_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_run_saes_sae_id"), "run_saes", ["sae_id"], unique=False)

    op.create_table(
        "segments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_sae_id", sa.Integer(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("stop", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_sae_id"], ["run_saes.id"], name=op.f("fk_segments_run_sae_id_run_saes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_segments")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_segments_run_sae_id"), "segments", ["run_sae_id"], unique=False)

    op.create_table(
        "shards",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("dataset_id", sa.Integer(), nullable=True),
        sa.Column("sae_id", sa.Integer(), nullable=True),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("run_sae_id", sa.Integer(), nullable=True),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("stop", sa.BigInteger(), nullable=False),
        sa.Column("n_chars", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=True),
        sa.Column("leased_until", sa.Double(), nullable=True),
        sa.Column("staged", JSON, nullable=True),
        sa.Column("stats", JSON, nullable=True),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_shards_dataset_id_datasets")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_shards_run_id_runs")),
        sa.ForeignKeyConstraint(["run_sae_id"], ["run_saes.id"], name=op.f("fk_shards_run_sae_id_run_saes")),
        sa.ForeignKeyConstraint(["sae_id"], ["saes.id"], name=op.f("fk_shards_sae_id_saes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shards")),
    )
    op.create_index(op.f("ix_shards_dataset_id"), "shards", ["dataset_id"], unique=False)
    op.create_index("ix_shards_run_id_state", "shards", ["run_id", "state"], unique=False)
    op.create_index(op.f("ix_shards_sae_id"), "shards", ["sae_id"], unique=False)
    op.create_index(op.f("ix_shards_state"), "shards", ["state"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_shards_state"), table_name="shards")
    op.drop_index(op.f("ix_shards_sae_id"), table_name="shards")
    op.drop_index("ix_shards_run_id_state", table_name="shards")
    op.drop_index(op.f("ix_shards_dataset_id"), table_name="shards")

    op.drop_table("shards")
    op.drop_index(op.f("ix_segments_run_sae_id"), table_name="segments")

    op.drop_table("segments")
    op.drop_index(op.f("ix_run_saes_sae_id"), table_name="run_saes")

    op.drop_table("run_saes")
    op.drop_index(op.f("ix_saes_sha256"), table_name="saes")

    op.drop_table("saes")
    op.drop_index(op.f("ix_runs_dataset_id"), table_name="runs")

    op.drop_table("runs")
    op.drop_table("settings")
    op.drop_table("models")
    op.drop_index("ix_datasets_name_sha256", table_name="datasets")

    op.drop_table("datasets")
