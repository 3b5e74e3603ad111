"""The label that is shown where there is room for one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from schema.database import Database, upgrade
from schema.lab import Label
from schema.labels import best_labels
from schema.tables import Model, Sae

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def test_votes_then_trust_then_score_then_the_newer(database_url: str) -> None:
    database = Database(database_url)
    upgrade(database)
    with database.writing() as session:
        model = Model(
            name="m",
            source="m",
            revision="r",
            family="f",
            n_layers=2,
            d_model=8,
            context=None,
            tokenizer_sha256="0" * 64,
        )
        sae = Sae(
            model=model, name="m/0-s", set_name="s", layer=0, release="r", format="f", activation="topk", k=2, d_model=8,
            d_sae=64, sha256="1" * 64, source="x", file_size=1, file_time=1,
        )  # fmt: skip
        session.add(sae)
        session.flush()

        def add(feature: int, text: str, source: str, **fields: object) -> None:
            later = BEGIN + timedelta(minutes=len(session.new))
            session.add(
                Label(sae_id=sae.id, feature=feature, text=text, author="a", source=source, updated_at=later, **fields)
            )

        add(1, "machine", "model", score=0.9)
        add(1, "person", "person")
        add(2, "poor", "model", score=0.2)
        add(2, "good", "model", score=0.8)
        add(2, "taken back", "person", deleted_at=BEGIN)
        add(3, "described", "describer", votes=2)
        add(3, "person", "person", votes=1)
        add(4, "old", "person")
        add(4, "new", "person")
        session.flush()
        best = best_labels(session, sae.id, [4, 3, 2, 1, 0, 1])
        assert {feature: label.text for feature, label in best.items()} == {
            1: "person",
            2: "good",
            3: "described",
            4: "new",
        }
        assert best_labels(session, sae.id + 1, [1]) == {}
    database.close()
