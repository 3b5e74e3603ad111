"""Names in a request to steer against the files that the home was made from."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from api.services.library import Library
from api.services.rules.book import make_rule
from api.services.steering.resolve import resolve
from schema.errors import Conflict, InputError, NotFound
from schema.home import open_home
from schema.settings import Settings
from schema.steer import SteeringVector
from schema.tables import Model, Sae, now
from schema.wire.rules import RuleBody
from schema.wire.steering import Steering

MODEL = "tiny-qwen3"
F7 = "tiny-qwen3/2-tiny/7"


@pytest.fixture(scope="module")
def books(indexed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """The indexed home with saved vectors, a rule, and an SAE of another model."""
    folder = tmp_path_factory.mktemp("resolve") / "home"
    shutil.copytree(indexed.home, folder)
    home = open_home(Settings.read(folder, {}))
    rng = np.random.default_rng(0)
    with home.database.writing() as session:
        own = session.query(Model).one()
        other = Model(name="other", source="x", revision="1", family="x", n_layers=2, d_model=32, context=None,
                      tokenizer_sha256="0" * 64)  # fmt: skip
        session.add(other)
        session.flush()
        like = session.query(Sae).filter_by(layer=0).one()
        copied = {
            c.name: getattr(like, c.name) for c in Sae.__table__.columns if c.name not in ("id", "name", "model_id")
        }
        session.add(Sae(**copied | {"sha256": "1" * 64}, name="other/0-tiny", model_id=other.id))
        for name, version, model, layers in (
            ("calm", 1, own, [1]), ("calm", 2, own, [1, 3]), ("gone", 1, own, [0]), ("strange", 1, other, [0]), ("one", 1, own, [1]),
        ):  # fmt: skip
            data = rng.standard_normal((len(layers), 32)).astype("<f4").tobytes()
            session.add(
                SteeringVector(name=name, version=version, model_id=model.id, layers=layers, d_model=32, data=data,
                               sha256=hashlib.sha256(data).hexdigest(), author="ann", deleted_at=now() if name == "gone" else None)
            )  # fmt: skip
    library = Library(home)
    make_rule(library, RuleBody(name="r", expression={"any": [{"feature": F7, "above": 0.5}]}), "ann")
    yield library
    home.close()


def ask(books: Library, *ops: dict[str, Any], **more: Any) -> Any:
    return resolve(books, Steering.model_validate({"ops": list(ops), **more}), MODEL)


def test_a_feature_is_its_decoder_column_at_its_layer(books: Library, release_dir: Path) -> None:
    (op,), condition = ask(books, {"feature": F7, "strength": 0.4, "unit": "residual_norm"})
    tensors = torch.load(release_dir / "layer2.sae.pt", weights_only=True)
    expected = tensors["W_dec"][:, 7].half().float().numpy()
    assert condition is None
    assert (op.place, op.target, op.layer, op.mode, op.strength, op.unit) == (0, F7, 2, "add", 0.4, "residual_norm")
    assert (op.sae, op.feature) == ("tiny-qwen3/2-tiny", 7)
    np.testing.assert_array_equal(op.vector, expected)


def test_feature_max_is_the_largest_activation_of_all_datasets(
    books: Library, model_dir: Path, release_dir: Path
) -> None:
    from tests.indexer.reference import reference
    from tests.making import PROBLEMS, SONGS, TALES

    texts = [row["text"] for row in (*PROBLEMS, *SONGS, *TALES)]
    every = reference(model_dir, release_dir, [2], texts, 6)[2].any.max(0)
    busy = int(every.argmax())
    (op,), _ = ask(books, {"feature": f"tiny-qwen3/2-tiny/{busy}", "unit": "feature_max"})
    assert op.largest == pytest.approx(float(every[busy]), rel=2e-3)
    silent = int(np.flatnonzero(every == 0)[0])
    with pytest.raises(Conflict, match=f"tiny/{silent} never fires in the index"):
        ask(books, {"feature": f"tiny-qwen3/2-tiny/{silent}", "unit": "feature_max"})


def test_a_vector_is_one_operation_a_layer(books: Library) -> None:
    ops, _ = ask(books, {"vector": "calm", "mode": "ablate"}, {"feature": F7})
    assert [(op.place, op.target, op.layer) for op in ops] == [(0, "calm@2", 1), (0, "calm@2", 3), (1, F7, 2)]
    with books.home.database.reading() as session:
        data = session.query(SteeringVector).filter_by(name="calm", version=2).one().data
    np.testing.assert_array_equal(np.stack([op.vector for op in ops[:2]]), np.frombuffer(data, "<f4").reshape(2, 32))
    ((only,), _) = ask(books, {"vector": "calm@2", "layer": 3})
    assert only.layer == 3
    np.testing.assert_array_equal(only.vector, ops[1].vector)
    ((moved,), _) = ask(books, {"vector": "one", "layer": 0})
    assert moved.layer == 0


@pytest.mark.parametrize("mode", ["add", "ablate"])
def test_a_feature_can_be_added_or_ablated_at_another_layer(books: Library, mode: str) -> None:
    ((op,), _) = ask(books, {"feature": F7, "layer": 0, "mode": mode})
    assert op.layer == 0


def test_conditions(books: Library) -> None:
    _, condition = ask(books, {"feature": F7}, when={"rule": "r", "scope": "token"})
    assert (condition.name, condition.scope) == ("r@1", "token")
    assert condition.expression.model_dump() == {"any": [{"feature": F7, "above": 0.5}]}
    _, written = ask(books, {"feature": F7}, when={"expression": {"feature": "tiny-qwen3/0-tiny/3"}})
    assert written.expression.feature == "tiny-qwen3/0-tiny/3"


@pytest.mark.parametrize(
    ("op", "error", "sentence"),
    [
        ({"feature": "tiny-qwen3/2-tinny/7"}, NotFound, "did you mean tiny-qwen3/"),
        ({"feature": "tiny-qwen3/2-tiny/256"}, NotFound, "has features 0 to 255, and none 256"),
        ({"feature": "nonsense"}, InputError, "is no feature's id"),
        ({"feature": "other/0-tiny/1"}, Conflict, "belongs to model other, but tiny-qwen3 is loaded"),
        ({"feature": F7, "layer": 4}, InputError, r"ops\.0: layer 4, but tiny-qwen3 has layers 0 to 3"),
        ({"feature": F7, "layer": 1, "mode": "suppress"}, InputError, "which its SAE gives at layer 2 only"),
        ({"feature": F7, "mode": "ablate", "unit": "unit"}, InputError, "mode ablate has no unit"),
        ({"feature": F7, "mode": "suppress", "strength": 2}, InputError, "the share that is removed, 0 to 1, not 2"),
        ({"feature": F7, "strength": -101, "unit": "residual_norm"}, InputError, "between -100 and 100"),
        ({"vector": "clam"}, NotFound, "did you mean calm"),
        ({"vector": "calm@9"}, NotFound, "has no version 9; its newest is 2"),
        ({"vector": "calm@x"}, InputError, "is the vector's version, as in calm@2"),
        ({"vector": "gone"}, NotFound, "was deleted; its versions 1 to 1 can still be read as gone@1"),
        ({"vector": "gone@1"}, Conflict, "was deleted on "),
        ({"vector": "strange"}, Conflict, "was made for model other, but tiny-qwen3 is loaded"),
        ({"vector": "calm", "layer": 2}, InputError, "has layers 1, 3, and none 2"),
        ({"feature": F7, "where": {"prompt": "none", "generation": "none"}}, InputError, "nothing would be steered"),
        ({"feature": F7, "where": {"prompt_window": [3, 3]}}, InputError, r"\[3, 3\) holds no token"),
        ({"feature": F7, "where": {"prompt": "last", "prompt_positions": [1]}}, InputError, "leave one out"),
        (
            {"feature": F7, "where": {"prompt_window": [0, 3], "prompt_positions": [1]}},
            InputError,
            "give prompt_window or prompt_positions, not both",
        ),
        ({"feature": F7, "where": {"generation_positions": [-1]}}, InputError, "counted from 0"),
        (
            {"feature": F7, "where": {"tokens": [5], "exclude_tokens": [5]}},
            InputError,
            "every id in tokens is excluded",
        ),
    ],
)
def test_refusals(books: Library, op: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        ask(books, op)


@pytest.mark.parametrize(
    ("when", "error", "sentence"),
    [
        ({"rule": "rr"}, NotFound, "did you mean r"),
        ({"rule": "r@2"}, NotFound, "has no version 2"),
        ({"expression": {"feature": "other/0-tiny/3"}}, Conflict, "reads other/0-tiny, an SAE of model other"),
        ({"expression": {"feature": "tiny-qwen3/0-tiny/999"}}, NotFound, "none 999"),
    ],
)
def test_refused_conditions(books: Library, when: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        ask(books, {"feature": F7}, when=when)


def test_operations_that_contradict_each_other(books: Library) -> None:
    with pytest.raises(InputError, match=r"ops\.0 and steering\.ops\.1 contradict each other: both set"):
        ask(books, {"feature": F7, "mode": "set"}, {"feature": F7, "mode": "set", "strength": 2})
    with pytest.raises(InputError, match="one sets and the other removes"):
        ask(books, {"feature": F7, "mode": "suppress"}, {"feature": F7, "mode": "set"})
    with pytest.raises(InputError, match="the floor lies above the cap"):
        ask(books, {"feature": F7, "mode": "cap"}, {"feature": F7, "mode": "floor", "strength": 2})
    apart = {"prompt": "none"}
    ops, _ = ask(books, {"feature": F7, "mode": "set"}, {"feature": F7, "mode": "set", "strength": 2, "where": apart})
    assert len(ops) == 2


def test_a_vector_whose_bytes_changed_is_not_used(indexed: Settings, tmp_path: Path) -> None:
    shutil.copytree(indexed.home, tmp_path / "home")
    home = open_home(Settings.read(tmp_path / "home", {}))
    with home.database.writing() as session:
        model = session.query(Model).one()
        session.add(
            SteeringVector(name="v", version=1, model_id=model.id, layers=[0], d_model=32, data=b"\1" * 128,
                           sha256="0" * 64, author="ann")
        )  # fmt: skip
    with pytest.raises(Exception, match="is not what was saved: its bytes have another hash"):
        resolve(Library(home), Steering.model_validate({"ops": [{"vector": "v"}]}), MODEL)
    home.close()
