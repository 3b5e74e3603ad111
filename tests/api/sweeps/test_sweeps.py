"""Sweeps over a real model with a plain generator: what is stored, what is measured, and how a sweep goes on after it was cut off."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy import select

from api.app import create_app
from api.services.library import Library
from api.services.sweeps import writing
from api.services.sweeps.book import begin, list_sweeps, show_sweep, sweep_texts
from api.services.sweeps.controls import with_features
from api.services.sweeps.page import sweep_html
from api.services.sweeps.plan import make_plan, operations_at
from api.services.sweeps.plot import plot_svg
from api.services.sweeps.propose import propose
from api.services.sweeps.work import work
from schema.errors import Conflict, InputError, NotFound, ScopebaseError, WorkFailed
from schema.home import open_home
from schema.lab import AuditEntry
from schema.settings import Settings
from schema.steer import Sweep, SweepPoint
from schema.wire.contrast import ProposeRequest
from schema.wire.sweeps import SweepAnswer, SweepRequest
from tests.api.sweeps.plain_generator import PlainGenerator
from tests.lengths import LONG
from tests.making import SONGS

SAE = "tiny-qwen3/2-tiny"
BASE: dict[str, Any] = {
    "name": "first",
    "target": [{"feature": f"{SAE}/26", "unit": "residual_norm", "where": {"skip_special": False}}],
    "strengths": [0.5, 2.0],
    "prompts": ["Once upon a time", "La la la", "Ann has"],
    "samples": 2,
    "max_tokens": 5,
    "seed": 3,
    "effects": [
        {"measure": "feature", "feature": f"{SAE}/26"},
        {"measure": "rule", "expression": {"any": [{"feature": f"{SAE}/26"}, {"feature": f"{SAE}/103"}]}},
        {"measure": "repetition", "n": 1},
        {"measure": "words", "words": ["a"]},
    ],
    "controls": {"random_features": 2, "random_directions": 1, "negative": True},
}
N_POINTS = 1 + 2 * (1 + 2 + 1) + 2


def asked(**changes: Any) -> SweepRequest:
    return SweepRequest(**{**BASE, **changes})


def copy_home(indexed: Settings, folder: Path) -> Library:
    settings = Settings.read(folder / "home", {})
    shutil.copytree(indexed.home, settings.home)
    return Library(open_home(settings))


@pytest.fixture
def books(indexed: Settings, tmp_path: Path) -> Iterator[Library]:
    found = copy_home(indexed, tmp_path)
    yield found
    found.home.close()


@pytest.fixture
def generator(books: Library, model_dir: Path) -> PlainGenerator:
    return PlainGenerator(books.home, model_dir)


@pytest.fixture(scope="module")
def whole(
    indexed: Settings, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Library, PlainGenerator, SweepAnswer]]:
    """A sweep that ran to its end. Read it only."""
    found = copy_home(indexed, tmp_path_factory.mktemp("whole"))
    generator = PlainGenerator(found.home, model_dir)
    yield found, generator, run(found, generator, asked())
    found.home.close()


def run(books: Library, generator: Any, request: SweepRequest) -> SweepAnswer:
    assert begin(books, generator, request, "ann")
    answer = work(books, generator, request.name, threading.Event())
    assert answer is not None
    return answer


def activations(model_dir: Path, release_dir: Path, ids: list[int], first: int, feature: int) -> np.ndarray:
    """A feature of layer 2 at each token from `first` on, by plain products and torch.topk."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    kept: list[torch.Tensor] = []
    model.model.layers[2].register_forward_hook(lambda _m, _i, out: kept.append(out))
    with torch.inference_mode():
        model(input_ids=torch.tensor([ids]))
    sae = torch.load(release_dir / "layer2.sae.pt", weights_only=True)
    pre = kept[0][0] @ sae["W_enc"].T + sae["b_enc"]
    value, place = pre.topk(6, dim=1)
    fired = torch.zeros_like(pre).scatter(1, place, value.relu())[:, feature].numpy()
    counts = [n for n in range(first, len(ids)) if ids[n] not in (0, 1)]
    return np.asarray(fired[counts])


def test_every_point_is_there_and_every_control_at_every_strength(
    whole: tuple[Library, PlainGenerator, SweepAnswer],
) -> None:
    books, generator, answer = whole
    assert (answer.state, answer.n_points, answer.n_done, len(answer.points)) == ("done", N_POINTS, N_POINTS, N_POINTS)
    targets = [p.strength for p in answer.points if p.kind == "target"]
    assert targets == [0.5, 2.0, -0.5, -2.0]
    features = {p.control for p in answer.points if p.kind == "random_feature"}
    assert len(features) == 2
    assert f"{SAE}/26" not in features
    assert {(p.kind, p.strength) for p in answer.points if p.control} == {
        (kind, s) for kind in ("random_feature", "random_direction") for s in (0.5, 2.0)
    }
    assert (answer.made.engine, answer.made.n_prompts, answer.request) == ("plain", 3, asked())
    assert {p.sae: sorted(p.runs) for p in answer.provenance} == {SAE: ["problems", "songs", "tales"]}
    assert answer == show_sweep(books, "first")
    with books.home.database.reading() as session:
        assert session.scalars(select(AuditEntry.action)).all().count("sweep.create") == 1
    assert len(generator.told) == 6 * N_POINTS


def test_controls_have_the_norm_of_the_target_and_the_same_seeds(
    whole: tuple[Library, PlainGenerator, SweepAnswer],
) -> None:
    _, generator, _ = whole
    norms = {float(np.linalg.norm(op.vector)) for choice in generator.told for op in choice.ops}
    assert max(norms) == pytest.approx(min(norms), rel=1e-5)
    seeds = [[c.sampling.seed for c in generator.told[i : i + 6]] for i in range(0, len(generator.told), 6)]
    assert all(each == seeds[0] for each in seeds)
    assert len(set(seeds[0])) == 6


def test_what_is_measured_is_what_dense_products_and_plain_counting_say(
    whole: tuple[Library, PlainGenerator, SweepAnswer], model_dir: Path, release_dir: Path
) -> None:
    books, generator, answer = whole
    place = next(p.place for p in answer.points if p.kind == "target" and p.strength == 2.0)
    with books.home.database.reading() as session:
        stored = session.scalars(select(SweepPoint.texts).where(SweepPoint.place == place)).one()
        plan = session.scalars(select(Sweep.plan)).one()
    means, fires, again, nll, n = [], [], [], 0.0, 0
    for text in stored:
        prompt, ids = plan["prompts"][text["prompt"]]["ids"], text["ids"]
        own = activations(model_dir, release_dir, prompt + ids, len(prompt), 26)
        other = activations(model_dir, release_dir, prompt + ids, len(prompt), 103)
        means.append(own.mean() if len(own) else np.nan)
        fires.append(bool((own > 0).any() or (other > 0).any()))
        again.append(1 - len(set(ids)) / len(ids))
        nll -= float(generator.score([prompt + ids], [len(prompt)])[0].sum())
        n += len(ids)
    point = answer.points[place]
    assert point.effects[0].value.value == pytest.approx(np.nanmean(np.reshape(means, (3, 2)).mean(1)), rel=2e-3)
    assert point.effects[1].value.value == pytest.approx(np.mean(fires))
    assert point.effects[2].value.value == pytest.approx(np.mean(again))
    assert point.perplexity.value == pytest.approx(np.exp(nll / n), rel=1e-4)
    assert (point.n_texts, point.n_tokens) == (6, n)


def test_texts_are_kept_with_their_prompts_and_seeds(whole: tuple[Library, PlainGenerator, SweepAnswer]) -> None:
    books, generator, _ = whole
    first = sweep_texts(books, "first", 0, 4, None)
    rest = sweep_texts(books, "first", 0, 4, first.next_cursor)
    assert [t.prompt for t in [*first.data, *rest.data]] == [p for p in BASE["prompts"] for _ in range(2)]
    assert [t.seed for t in [*first.data, *rest.data]] == [c.sampling.seed for c in generator.told[:6]]
    assert rest.next_cursor is None
    with pytest.raises(InputError, match=f"points 0 to {N_POINTS - 1}, and none 99"):
        sweep_texts(books, "first", 99, 4, None)


def test_a_complete_sweep_is_not_done_again(whole: tuple[Library, PlainGenerator, SweepAnswer]) -> None:
    books, generator, _ = whole
    before = len(generator.told)
    assert not begin(books, generator, asked(), "bob")
    assert len(generator.told) == before
    with pytest.raises(Conflict, match="of another request"):
        begin(books, generator, asked(seed=4), "bob")


def test_a_sweep_that_broke_down_goes_on_and_ends_as_if_it_had_not(
    books: Library, model_dir: Path, whole: tuple[Library, PlainGenerator, SweepAnswer]
) -> None:
    frail = PlainGenerator(books.home, model_dir, fails_at=15)
    with pytest.raises(WorkFailed, match="broke down"):
        run(books, frail, asked())
    assert (show_sweep(books, "first").n_done, show_sweep(books, "first").state) == (2, "stopped")
    sound = PlainGenerator(books.home, model_dir)
    answer = run(books, sound, asked())
    assert len(sound.told) == 6 * (N_POINTS - 2)
    assert (answer.points, answer.suggestion) == (whole[2].points, whole[2].suggestion)


KILLED = """
import os, signal, sys, threading
from pathlib import Path
import scopebase
from api.services.library import Library
from api.services.sweeps.book import begin
from api.services.sweeps.work import work
from schema.home import open_home
from schema.settings import Settings
from tests.api.sweeps.plain_generator import PlainGenerator
from tests.api.sweeps.test_sweeps import asked
books = Library(open_home(Settings.read(Path(sys.argv[1]), {})))
generator = PlainGenerator(books.home, Path(sys.argv[2]))
begin(books, generator, asked(), "ann")
def tell(done, tokens):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
work(books, generator, "first", threading.Event(), tell)
"""


@pytest.mark.skipif(not LONG, reason="make torture kills it; the suite interrupts it")
def test_a_killed_sweep_goes_on(
    books: Library, model_dir: Path, whole: tuple[Library, PlainGenerator, SweepAnswer]
) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(books.home.settings.home), str(model_dir)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert show_sweep(books, "first").n_done == 3
    answer = run(books, PlainGenerator(books.home, model_dir), asked())
    assert answer.points == whole[2].points


def test_a_sweep_goes_on_only_with_what_it_was_begun_with(books: Library, generator: PlainGenerator) -> None:
    begin(books, generator, asked(), "ann")
    generator.engine = "other"
    with pytest.raises(Conflict, match="begun with engine=plain, and here it is other"):
        begin(books, generator, asked(), "ann")


def test_the_beginnings_of_a_dataset_are_prompts(whole: tuple[Library, PlainGenerator, SweepAnswer]) -> None:
    books, generator, _ = whole
    first = asked(prompts={"dataset": "songs", "n": 5, "tokens": 4, "draw": "first"})
    plan = make_plan(books, generator, first)
    assert [p.ids for p in plan.prompts] == [generator.tokenize(row["text"])[:4] for row in SONGS[:5]]
    assert all(row["text"].startswith(p.text) for row, p in zip(SONGS, plan.prompts, strict=False))
    drawn = make_plan(books, generator, asked(prompts={"dataset": "songs", "n": 5, "where": {"mood": "sad"}}))
    sad = [row["text"] for row in SONGS if row["mood"] == "sad"]
    assert all(any(text.startswith(p.text) for text in sad) for p in drawn.prompts)
    assert drawn == make_plan(books, generator, asked(prompts={"dataset": "songs", "n": 5, "where": {"mood": "sad"}}))


def test_units_carry_over_to_controls(library: Library) -> None:
    """What a control adds is as large as what the target adds, whatever the unit."""
    books = library
    for unit in ("absolute", "unit", "residual_norm", "feature_max"):
        request = asked(target=[{"feature": f"{SAE}/26", "unit": unit, "strength": 2.0}])
        ops, _ = operations_at(books, "tiny-qwen3", request, 0.25)
        (control,) = with_features(books, ops, [f"{SAE}/103"])
        assert (ops[0].strength, control.strength, control.unit) == (0.5, 0.5, unit)
        assert (control.feature, control.largest) == (103, ops[0].largest)
        assert np.linalg.norm(control.vector) == pytest.approx(np.linalg.norm(ops[0].vector), rel=1e-5)
        assert abs(float(control.vector @ ops[0].vector)) < 0.9 * float(ops[0].vector @ ops[0].vector)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"target": [{"feature": f"{SAE}/999"}]}, NotFound, "none 999"),
        ({"target": [{"vector": "calm"}]}, NotFound, "no vector named 'calm'"),
        (
            {"target": [{"feature": f"{SAE}/26", "mode": "suppress"}], "strengths": [2]},
            InputError,
            "share that is removed",
        ),
        (
            {
                "target": [{"feature": f"{SAE}/26", "mode": "set"}],
                "controls": {"random_features": 0, "random_directions": 1},
            },
            InputError,
            "reads a feature's activation",
        ),
        ({"max_tokens": 255}, InputError, "reads 256 at most"),
        ({"effects": [{"measure": "script", "script": "Klingon"}]}, InputError, "not a Unicode script"),
        ({"effects": [{"measure": "rule", "rule": "toxic"}]}, NotFound, "no rule named 'toxic'"),
        ({"prompts": {"dataset": "songs", "n": 99}}, InputError, "99 texts of songs are asked for and 45 are there"),
        ({"prompts": {"dataset": "sogns"}}, NotFound, "did you mean songs"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_any_work(
    whole: tuple[Library, PlainGenerator, SweepAnswer],
    changes: dict[str, Any],
    error: type[ScopebaseError],
    sentence: str,
) -> None:
    books, generator, _ = whole
    before = len(generator.told)
    with pytest.raises(error, match=sentence):
        begin(books, generator, asked(name="other", **changes), "ann")
    assert [sweep.name for sweep in list_sweeps(books, 50, None, {}).data] == ["first"]
    assert len(generator.told) == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"strengths": [0.0, 1.0]}, "none 0"),
        ({"strengths": [1.0, 1.0]}, "each once"),
        ({"strengths": [float("nan")]}, "finite"),
        ({"strengths": [i + 1.0 for i in range(32)], "samples": 64, "prompts": ["a"] * 256}, "may have 50,000"),
        ({"effects": [{"measure": "charm"}]}, "charm"),
        ({"name": "../x"}, "pattern"),
    ],
)
def test_requests_that_make_no_sense_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        asked(**changes)


def test_pictures_and_pages_hold_what_people_wrote_as_text(whole: tuple[Library, PlainGenerator, SweepAnswer]) -> None:
    nasty = whole[2].model_copy(update={"author": "<script>alert(1)</script>", "target": ["$x^2$ & <b>"]})
    svg, page = plot_svg(nasty), sweep_html(nasty)
    assert svg.count("<svg") == 1
    assert "perplexity" in svg
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "$x^2$ &amp; &lt;b&gt;" in svg
    assert plot_svg(nasty) == svg


def test_without_a_model_sweeps_can_be_looked_at_and_not_begun(library: Library) -> None:
    with TestClient(create_app(library.home)) as client:
        assert client.post("/v1/sweeps", json=asked().model_dump(mode="json")).status_code == 503
        assert client.get("/v1/sweeps").json() == {"data": [], "next_cursor": None}


def test_a_service_runs_a_sweep_in_the_background(
    indexed: Settings, model_dir: Path, tmp_path: Path, whole: tuple[Library, PlainGenerator, SweepAnswer]
) -> None:
    home = copy_home(indexed, tmp_path).home
    body = asked().model_dump(mode="json")
    with TestClient(create_app(home, generator=PlainGenerator(home, model_dir))) as client:  # type: ignore[arg-type]
        begun = client.post("/v1/sweeps", json=body)
        assert (begun.status_code, begun.json()["state"]) in ((202, "waiting"), (202, "running"))
        until = time.monotonic() + 60
        while client.get("/v1/sweeps/first").json()["state"] != "done":
            assert time.monotonic() < until
            time.sleep(0.05)
        answer = client.get("/v1/sweeps/first").json()
        assert answer["points"] == [p.model_dump(mode="json") for p in whole[2].points]
        assert client.post("/v1/sweeps", json=body).json()["state"] == "done"
        assert client.post("/v1/sweeps", json={**body, "seed": 9}).status_code == 409
        assert client.get("/v1/sweeps").json()["data"][0]["id"] == "first"
        assert client.get("/v1/sweeps/first/plot.svg").headers["content-type"] == "image/svg+xml"
        assert "<svg" in client.get("/v1/sweeps/first/plot.html").text
        assert len(client.get("/v1/sweeps/first/texts", params={"point": 1}).json()["data"]) == 6
        gone = client.get("/v1/sweeps/frist")
        assert (gone.status_code, "did you mean first" in gone.json()["detail"]) == (404, True)
        assert client.post("/v1/sweeps/first/stop").status_code == 409


def test_a_sweep_in_the_background_can_be_stopped_and_tells_why_it_failed(
    indexed: Settings, model_dir: Path, tmp_path: Path
) -> None:
    home = copy_home(indexed, tmp_path).home
    generator = PlainGenerator(home, model_dir, fails_at=20)
    with TestClient(create_app(home, generator=generator)) as client:  # type: ignore[arg-type]
        client.post("/v1/sweeps", json=asked().model_dump(mode="json"))
        until = time.monotonic() + 60
        while client.get("/v1/sweeps/first").json()["state"] != "failed":
            assert time.monotonic() < until
            time.sleep(0.05)
        assert client.get("/v1/sweeps/first").json()["error"] == "the engine broke down"
        generator.fails_at = None
        client.post("/v1/sweeps", json=asked().model_dump(mode="json"))
        stopped = client.post("/v1/sweeps/first/stop")
        assert stopped.status_code == 200
        while client.get("/v1/sweeps/first").json()["state"] == "running":
            assert time.monotonic() < until
            time.sleep(0.05)
        final = client.get("/v1/sweeps/first").json()
        assert (final["state"], final["error"]) == ("stopped", None)
        assert 3 <= final["n_done"] < N_POINTS


def test_a_full_queue_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from schema.errors import TooMany
    from schema.generation import Choice, Ended, Sampling

    refusals = [TooMany("full"), TooMany("full")]

    class Busy:
        def submit(self, choices: Any, deliver: Any) -> Any:
            if refusals:
                raise refusals.pop()
            for place in range(len(choices)):
                deliver(Ended(place, "stop", 0, None))
            return self

    monkeypatch.setattr(writing, "PATIENCE", 0.01)
    choices = [Choice((1,), Sampling(max_tokens=1))] * 20
    found = writing.generate(Busy(), choices, threading.Event())  # type: ignore[arg-type]
    assert [t.ended for t in found] == [True] * 20
    stop = threading.Event()
    stop.set()
    refusals.append(TooMany("full"))
    with pytest.raises(writing.Stopped):
        writing.generate(Busy(), choices, stop)  # type: ignore[arg-type]


def test_the_real_engine_writes_what_the_plain_one_writes(
    books: Library, generator: PlainGenerator, model_dir: Path
) -> None:
    from steering.generator import open_generator

    request = asked(temperature=0.0, samples=1, effects=BASE["effects"][:2], max_tokens=12)
    plain = run(books, generator, request)
    real = open_generator(books.home, str(model_dir))
    try:
        answer = run(books, real, request.model_copy(update={"name": "second"}))
    finally:
        real.close()
    texts = [
        [text.text for text in sweep_texts(books, name, point.place, 50, None).data]
        for name in ("first", "second")
        for point in plain.points
    ]
    assert texts[:N_POINTS] == texts[N_POINTS:]
    assert len({tuple(each) for each in texts}) > 4
    for one, two in zip(plain.points, answer.points, strict=True):
        assert one.perplexity.value == pytest.approx(two.perplexity.value, rel=1e-3)
        assert (two.relative_norm is None) == (one.kind == "unsteered")
    added = next(p for p in answer.points if p.strength == 0.5 and p.kind == "target")
    assert added.relative_norm == pytest.approx(0.5, rel=1e-3)


def test_proposals_are_the_clearest_features_over_all_layers(
    library: Library, model_dir: Path, release_dir: Path
) -> None:
    from tests.indexer.reference import reference
    from tests.making import TALES

    body = ProposeRequest(
        positive={"dataset": "songs"}, negative={"dataset": "tales"}, set="tiny", propose=4, sort="rate_difference"
    )  # type: ignore[arg-type]
    answer = propose(library, None, body)
    found: list[tuple[float, str]] = []
    sides = [reference(model_dir, release_dir, [0, 1, 2, 3], [r["text"] for r in rows], 6) for rows in (SONGS, TALES)]
    for layer in range(4):
        yes, no = (side[layer].any > 0 for side in sides)
        difference = yes.mean(0) - no.mean(0)
        found += [(-d, f"tiny-qwen3/{layer}-tiny/{i}") for i, d in enumerate(difference.tolist())]
    best = sorted(found)[:4]
    assert [-item.rate_difference for item in answer.data] == pytest.approx([d for d, _ in best])
    assert {item.feature for item in answer.data} <= {name for d, name in found if d <= best[-1][0] + 1e-9}
    for item in answer.data:
        assert item.op.feature == item.feature
        assert item.layer == int(item.sae.split("/")[1][0])
        assert item.rate_q_value <= 0.05
    sweep = asked(target=[answer.data[0].op.model_dump()], strengths=answer.data[0].strengths)
    assert sweep.target[0].unit == "residual_norm"


def test_too_few_texts_propose_nothing_and_say_why(library: Library) -> None:
    where = [{"id": [row["id"]]} for row in SONGS[:2]]
    body = ProposeRequest(
        positive={"dataset": "songs", "where": where[0]}, negative={"dataset": "songs", "where": where[1]}, set="tiny"
    )  # type: ignore[arg-type]
    answer = propose(library, None, body)
    assert answer.data == []
    assert answer.reason is not None
    assert "give more texts" in answer.reason
    with pytest.raises(NotFound, match="no set of SAEs named 'tny'; did you mean tiny"):
        propose(library, None, body.model_copy(update={"set": "tny"}))
