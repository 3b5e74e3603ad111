"""What people add to an index: labels, rules, evaluation results, keys, the audit log."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("scopes", JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("name", name=op.f("uq_api_keys_name")),
        sa.UniqueConstraint("sha256", name=op.f("uq_api_keys_sha256")),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("detail", JSON, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index("ix_audit_at", "audit", ["at"])

    op.create_table(
        "rules",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("expression", JSON, nullable=False),
        sa.Column("pool", sa.String(length=8), nullable=False),
        sa.Column("saes", JSON, nullable=False),
        sa.Column("provenance", JSON, nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("signed_by", sa.String(length=128), nullable=True),
        sa.Column("signed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rules")),
        sa.UniqueConstraint("name", "version", name=op.f("uq_rules_name")),
    )
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("dataset_id", sa.Integer(), nullable=False),
        sa.Column("evaluated", sa.String(length=200), nullable=False),
        sa.Column("metric", sa.String(length=120), nullable=False),
        sa.Column("format", sa.String(length=32), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("n_scores", sa.BigInteger(), nullable=False),
        sa.Column("mean", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_evaluations_dataset_id_datasets")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint("dataset_id", "evaluated", "metric", name=op.f("uq_evaluations_dataset_id")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "rule_evaluations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("rule_id", sa.Integer(), nullable=False),
        sa.Column("result", JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["rule_id"], ["rules.id"], name=op.f("fk_rule_evaluations_rule_id_rules")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rule_evaluations")),
    )
    op.create_index("ix_rule_evaluations_rule_id", "rule_evaluations", ["rule_id"])

    op.create_table(
        "labels",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uid", sa.String(length=64), nullable=False),
        sa.Column("sae_id", sa.Integer(), nullable=False),
        sa.Column("feature", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("explainer", sa.String(length=200), nullable=True),
        sa.Column("method", sa.String(length=120), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("score_method", sa.String(length=120), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=True),
        sa.Column("examples", JSON, nullable=True),
        sa.Column("licence", sa.String(length=120), nullable=True),
        sa.Column("origin", JSON, nullable=False),
        sa.Column("votes", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["sae_id"], ["saes.id"], name=op.f("fk_labels_sae_id_saes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labels")),
        sa.UniqueConstraint("uid", name=op.f("uq_labels_uid")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_labels_sae_id_feature", "labels", ["sae_id", "feature"])

    op.create_table(
        "label_comments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("label_id", sa.Integer(), nullable=False),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["label_id"], ["labels.id"], name=op.f("fk_label_comments_label_id_labels")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label_comments")),
    )
    op.create_index("ix_label_comments_label_id", "label_comments", ["label_id"])

    op.create_table(
        "label_events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("label_id", sa.Integer(), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("before", JSON, nullable=True),
        sa.Column("after", JSON, nullable=True),
        sa.Column("undoes", sa.Integer(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["label_id"], ["labels.id"], name=op.f("fk_label_events_label_id_labels")),
        sa.ForeignKeyConstraint(["undoes"], ["label_events.id"], name=op.f("fk_label_events_undoes_label_events")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label_events")),
    )
    op.create_index("ix_label_events_label_id", "label_events", ["label_id"])

    op.create_table(
        "label_votes",
        sa.Column("label_id", sa.Integer(), nullable=False),
        sa.Column("voter", sa.String(length=128), nullable=False),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["label_id"], ["labels.id"], name=op.f("fk_label_votes_label_id_labels")),
        sa.PrimaryKeyConstraint("label_id", "voter", name=op.f("pk_label_votes")),
    )


def downgrade() -> None:
    op.drop_table("label_votes")
    op.drop_index("ix_label_events_label_id", table_name="label_events")

    op.drop_table("label_events")
    op.drop_index("ix_label_comments_label_id", table_name="label_comments")

    op.drop_table("label_comments")
    op.drop_index("ix_labels_sae_id_feature", table_name="labels")

    op.drop_table("labels")
    op.drop_index("ix_rule_evaluations_rule_id", table_name="rule_evaluations")

    op.drop_table("rule_evaluations")
    op.drop_table("evaluations")
    op.drop_table("rules")
    op.drop_index("ix_audit_at", table_name="audit")

    op.drop_table("audit")
    op.drop_table("api_keys")
