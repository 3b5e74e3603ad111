"""Labels that no person wrote: the describer against a count by hand, the explainer against an endpoint that misbehaves."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.services.labels import asking, book
from api.services.labels.book import Filter
from api.services.labels.chat import Budget
from api.services.labels.describer import TOP, describe
from api.services.labels.describing import store_descriptions
from api.services.labels.explaining import Plan, explain
from api.services.library import Library
from schema.errors import InputError
from schema.home import open_home
from schema.layout import feature_key
from schema.lookup import find_sae
from schema.settings import Settings
from schema.wire.questions import SampleProof, Token
from scopebase.chat import Endpoint
from scopebase.cli.label_makers import parse_features
from tests.making import PROBLEMS, SONGS, TALES

SAE = "tiny-qwen3/2-tiny"
ROWS = {"problems": PROBLEMS, "songs": SONGS, "tales": TALES}


@pytest.fixture
def own(indexed: Settings, tmp_path: Path) -> Iterator[Library]:
    """A copy of the indexed home that may be written."""
    shutil.copytree(indexed.home, tmp_path / "home")
    home = open_home(Settings.read(tmp_path / "home", {}))
    yield Library(home)
    home.close()


# --- the describer


@pytest.fixture(scope="module")
def fired(model_dir: Path, release_dir: Path) -> dict[str, list[tuple[np.ndarray, list[tuple[int, int]]]]]:
    """Per sample (n_tokens, 256) activations of layer 2, by plain torch, and the characters of each token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    network: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    sae = torch.load(release_dir / "layer2.sae.pt", weights_only=True)
    found: dict[str, list[tuple[np.ndarray, list[tuple[int, int]]]]] = {}
    for name, rows in ROWS.items():
        found[name] = []
        for row in rows:
            coded = tokenizer(row["text"], return_offsets_mapping=True, return_tensors="pt")
            with torch.no_grad():
                hidden = network(coded["input_ids"], output_hidden_states=True).hidden_states[3][0]
                pre = hidden @ sae["W_enc"].T + sae["b_enc"]
            value, place = pre.topk(6, dim=1)
            acts = torch.zeros_like(pre).scatter(1, place, value.relu())
            acts[0] = 0  # <s>, and position 0
            found[name].append((acts.numpy(), [tuple(span) for span in coded["offset_mapping"][0].tolist()]))
    return found


def test_descriptions_count_what_the_strongest_samples_fire(library: Library, fired: Any) -> None:
    """The tokens named, their counts, and the datasets, counted from dense activations; the TOP strongest are not settled by ties."""
    with library.home.database.reading() as session:
        sae = find_sae(session, SAE)
    said = describe(library, sae)
    peak = {name: np.stack([acts.max(0) for acts, _ in found]) for name, found in fired.items()}
    assert set(said) == {f for f in range(256) if any((peak[name][:, f] > 0).any() for name in ROWS)}
    keys = [feature_key(sae.id, feature) for feature in said]
    tops = library.store.rows("logits", keys, ["top_tokens"]).column("top_tokens").to_pylist()
    for text, top in zip(said.values(), tops, strict=True):
        whole = [f"'{token.strip()}'" for token in top if "\ufffd" not in token and token.strip()]
        assert ("promotes" in text) == bool(whole)
        assert not whole or text.endswith(f"; promotes {', '.join(whole[:4])}")
    checked = 0
    for feature, text in said.items():
        counts = {name: int((peak[name][:, feature] > 0).sum()) for name in ROWS}
        total = sum(counts.values())
        leading = max(counts, key=lambda name: counts[name])
        if counts[leading] * 2 > total:
            assert text.split("; ")[1] == f"mostly in {leading} ({counts[leading]} of {total} samples)", text
        else:
            n = sum(count > 0 for count in counts.values())
            assert f"in {total} samples of {n} of 3 datasets" in text
        if total > TOP:
            continue
        pieces: Counter[str] = Counter()
        for name, found in fired.items():
            for (acts, spans), row in zip(found, ROWS[name], strict=True):
                pieces.update(row["text"][slice(*spans[t])].strip() for t in np.flatnonzero(acts[:, feature]))
        firings = sum(pieces.values())
        named = [p for p in re.findall(r"'([^']*)'|(white space)", text.split(" (")[0])]
        shown = [a or "" for a, _ in named]
        assert [pieces[p] for p in shown] == sorted(pieces.values(), reverse=True)[: len(shown)], text
        share = sum(pieces[p] for p in shown) / firings
        assert f"({share:.0%} of {firings} firings" in text
        checked += 1
    assert checked > 10


def test_one_or_all_features_are_described_alike(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    with library.home.database.reading() as session:
        sae = find_sae(session, SAE)
    whole = describe(library, sae)
    some = sorted(whole)[::17]
    assert describe(library, sae, some) == {feature: whole[feature] for feature in some}
    monkeypatch.setattr("api.services.labels.describer.BLOCK", 3)
    assert describe(library, sae) == whole
    assert describe(library, sae, []) == {}


def test_descriptions_are_stored_once_and_give_way_to_people(own: Library) -> None:
    report = store_descriptions(own, SAE, "ann")
    assert report.described == report.written > 40
    assert report.described + report.never_firing == 256
    again = store_descriptions(own, SAE, "ann")
    assert (again.described, again.written) == (report.described, 0)
    one = book.list_labels(own, Filter(sae=SAE, source="describer"), 1).data[0]
    assert (one.author, one.source, one.origin) == ("scopebase", "describer", [])
    book.delete(own, one.id, "ann")
    store_descriptions(own, SAE, "ann")
    assert len(book.list_labels(own, Filter(feature=one.feature)).data) == 0


# --- the explainer


class Misbehaving(BaseHTTPRequestHandler):
    """Answers as the test says: a status, a text, or anything at all."""

    script: Callable[[int, dict[str, Any]], Any]
    asked: list[dict[str, Any]]
    keys: list[str | None]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.keys.append(self.headers.get("authorization"))
        self.asked.append(body)
        answer = type(self).script(len(self.asked) - 1, body)
        if answer is None:
            time.sleep(1.0)
            answer = 500
        status, text = (answer, "no") if isinstance(answer, int) else (200, answer)
        if isinstance(text, dict):
            text = json.dumps(text)
        try:
            self.send_response(status)
            if status == 429:
                self.send_header("retry-after", "3")
            self.end_headers()
            self.wfile.write(text.encode())
        except BrokenPipeError:
            pass  # the asker lost patience

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[int, dict[str, Any]], Any]], tuple[str, type[Misbehaving]]]]:
    running = []

    def start(script: Callable[[int, dict[str, Any]], Any]) -> tuple[str, type[Misbehaving]]:
        handler = type("Handler", (Misbehaving,), {"script": staticmethod(script), "asked": [], "keys": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1", handler

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def said(text: Any, tokens: int | None = 100) -> dict[str, Any]:
    usage = {} if tokens is None else {"usage": {"total_tokens": tokens}}
    return {"choices": [{"message": {"role": "assistant", "content": text}}], **usage}


def chat(url: str, waits: list[float] | None = None, **more: Any) -> Endpoint:
    return Endpoint(url, "explainer-1", wait=(waits if waits is not None else []).append, **more)


def live(own: Library, n: int) -> list[int]:
    with own.home.database.reading() as session:
        return sorted(describe(own, find_sae(session, SAE)))[:n]


def test_labels_come_with_what_they_were_made_from(own: Library, serve: Any) -> None:
    url, handler = serve(lambda i, body: said(f'Label: "things {i}"'))
    features = live(own, 3)
    endpoint = chat(url, key="sk-secret")
    report = explain(own, SAE, features, endpoint, "ann", Plan(shown=4))
    assert [item.text for item in report.data] == ["things 0", "things 1", "things 2"]
    assert (report.requests, report.tokens, report.left, report.stopped) == (3, 300, 0, None)
    assert handler.keys == ["Bearer sk-secret"] * 3
    assert handler.asked[0]["model"] == "explainer-1"
    item = book.get(own, report.data[0].id)
    assert (item.source, item.explainer, item.method, item.author) == ("model", "explainer-1", asking.METHOD, "ann")
    assert item.prompt == handler.asked[0]["messages"][1]["content"]
    assert item.examples is not None
    assert len(item.examples) == 4
    assert item.prompt is not None
    for line, example in zip(item.prompt.splitlines(), item.examples, strict=False):
        text = next(row["text"] for row in ROWS[example["dataset"]] if row["id"] == example["id"])
        assert "<<" in line
        bare = line.split(". ", 1)[1].replace("<<", "").replace(">>", "").strip()
        assert bare in " ".join(text.split())


def test_what_passes_by_itself_is_waited_for(own: Library, serve: Any) -> None:
    answers = [429, 500, "no JSON", {"no": "choices"}, None, said("patience")]
    url, _ = serve(lambda i, body: answers[i])
    waits: list[float] = []
    report = explain(own, SAE, live(own, 1), chat(url, waits, timeout=0.3), "ann")
    assert [item.text for item in report.data] == ["patience"]
    assert (report.requests, len(waits)) == (6, 5)
    assert waits[0] == 3.0  # as the endpoint asked
    assert all(2**i / 2 <= wait <= 2**i for i, wait in enumerate(waits) if i)


def test_a_failure_is_reported_never_stored_and_asked_again(own: Library, serve: Any) -> None:
    features = live(own, 3)
    healthy = threading.Event()
    url, _ = serve(lambda i, body: said("fine") if healthy.is_set() or i == 0 else 503)
    report = explain(own, SAE, features, chat(url), "ann")
    assert (len(report.data), len(report.failed), report.left) == (1, 2, 0)
    assert report.failed[0].feature == f"{SAE}/{features[1]}"
    assert report.failed[0].reason == "no answer in 6 tries, the last: status 503"
    assert len(book.list_labels(own, Filter(source="model")).data) == 1
    healthy.set()
    report = explain(own, SAE, features, chat(url), "ann")
    assert (len(report.data), report.skipped, report.failed) == (2, 1, [])
    assert len(explain(own, SAE, features, chat(url), "ann", Plan(again=True)).data) == 3


@pytest.mark.parametrize("answer", ["", "<think>so</think>", "x" * 400, "..." * 200])
def test_an_answer_that_is_no_label_is_a_failure(own: Library, serve: Any, answer: str) -> None:
    url, _ = serve(lambda i, body: said(answer))
    report = explain(own, SAE, live(own, 1), chat(url), "ann")
    assert (report.data, len(report.failed)) == ([], 1)
    assert book.list_labels(own, Filter(source="model")).data == []


def test_an_endpoint_that_is_down_ends_the_work(own: Library, serve: Any) -> None:
    url, handler = serve(lambda i, body: 500)
    report = explain(own, SAE, live(own, 12), chat(url), "ann")
    assert (len(report.failed), report.left, report.stopped) == (5, 7, "5 features in a row got no answer")
    assert len(handler.asked) == 30


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_no_retry_mends_is_said_at_once(own: Library, serve: Any, status: int) -> None:
    url, handler = serve(lambda i, body: status)
    with pytest.raises(InputError, match=f"refuses: status {status}, no"):
        explain(own, SAE, live(own, 2), chat(url), "ann")
    assert len(handler.asked) == 1


@pytest.mark.parametrize(
    ("budget", "made", "stopped"),
    [
        (Budget(requests=2), 2, "the budget of 2 requests is spent"),
        (Budget(tokens=250), 3, "the budget of 250 tokens is spent"),
    ],
)
def test_a_budget_ends_the_work_and_the_next_call_goes_on(
    own: Library, serve: Any, budget: Budget, made: int, stopped: str
) -> None:
    url, handler = serve(lambda i, body: said("fine"))
    features = live(own, 5)
    report = explain(own, SAE, features, chat(url, budget=budget), "ann")
    assert (len(report.data), report.left, report.stopped, report.failed) == (made, 5 - made, stopped, [])
    rest = explain(own, SAE, features, chat(url), "ann")
    assert (rest.skipped, len(rest.data)) == (made, 5 - made)
    assert len(handler.asked) == 5


def test_the_detection_score_is_balanced_accuracy(own: Library, serve: Any) -> None:
    """An oracle that knows which texts fire gets 1, one that always says all gets one half."""
    features = [f for f in live(own, 200) if 8 < _n_firing(own, f) < 60][:3]
    fires: dict[int, set[str]] = {f: _texts_that_fire(own, f) for f in features}
    current: list[int] = []

    def oracle(i: int, body: dict[str, Any]) -> Any:
        if "Say in one phrase" in body["messages"][0]["content"]:
            current[:] = [features[i // 2]]
            return said("a label")
        lines = body["messages"][1]["content"].split("\n\n", 1)[1].splitlines()
        firing = [n for n, line in enumerate(lines, 1) if any(line.split(". ", 1)[1] in t for t in fires[current[0]])]
        return said(f"<think>[9]</think>{json.dumps(firing)}")

    url, handler = serve(oracle)
    report = explain(own, SAE, features, chat(url), "ann", Plan(shown=4, scored=4))
    assert [item.score for item in report.data] == [1.0] * 3
    shown = {(e["dataset"], e["id"]) for item in report.data[:1] for e in item.examples or []}
    assert len(shown) == 4
    method = r"detection, balanced accuracy, 4 firing and ([1-4]) silent samples, seed 0"
    assert re.fullmatch(method, report.data[0].score_method or "")
    n = len(handler.asked[1]["messages"][1]["content"].split("\n\n", 1)[1].splitlines())
    url, _ = serve(lambda i, body: said("x") if "Say in one" in body["messages"][0]["content"] else said(list_of(n)))
    report = explain(own, SAE, features[:1], chat(url), "ann", Plan(shown=4, scored=4, again=True))
    assert report.data[0].score == 0.5


def list_of(n: int) -> str:
    return json.dumps(list(range(1, n + 1)))


def _n_firing(own: Library, feature: int) -> int:
    return sum(int(own.counts(pair).samples_any[feature]) for pair in _pairs(own))


def _pairs(own: Library) -> list[int]:
    from api.services.labels.describer import sources_of

    with own.home.database.reading() as session:
        return [source.pair for source in sources_of(session, find_sae(session, SAE))]


def _texts_that_fire(own: Library, feature: int) -> set[str]:
    """By the stored postings."""
    from api.services.firing import postings
    from api.services.labels.describer import sources_of
    from schema.lookup import segments_of

    found = set()
    with own.home.database.reading() as session:
        for source in sources_of(session, find_sae(session, SAE)):
            posting = postings(own.store, segments_of(session, source.pair), [feature], "any")[feature]
            found |= {" ".join(ROWS[source.name][int(o)]["text"].split()) for o in posting.ordinals}
    return found


def test_features_that_never_fire_are_not_asked_about(own: Library, serve: Any) -> None:
    silent = sorted(set(range(256)) - set(live(own, 256)))
    url, handler = serve(lambda i, body: said("x"))
    report = explain(own, SAE, silent[:2], chat(url), "ann")
    assert (report.never_firing, report.data, handler.asked) == (2, [], [])


def test_marks_stand_around_the_firing_tokens() -> None:
    tokens = [Token(start=4, end=7, activation=2, position=1), Token(start=8, end=9, activation=1, position=2)]
    sample = SampleProof(dataset="d", id="1", activation=2, text="the cat s at\nhome", offset=0, tokens=tokens)
    assert asking.marked(sample) == "the <<cat>> <<s>> at home"
    assert asking.plain(sample) == "the cat s at home"


@pytest.mark.parametrize(("answer", "numbers"), [("[1, 3]", {1, 3}), ("Texts: [] ", set()), ("[2][1]", {1})])
def test_numbers_are_read(answer: str, numbers: set[int]) -> None:
    assert asking.read_numbers(answer, 3) == numbers


@pytest.mark.parametrize("answer", ["none", "[4]", "[0]", "[1,,2]", "1, 2"])
def test_what_is_no_list_of_numbers_is_refused(answer: str) -> None:
    with pytest.raises(asking.Unusable, match="asked for a JSON list of numbers from 1 to 3"):
        asking.read_numbers(answer, 3)


def test_features_are_named_by_ranges() -> None:
    assert parse_features("0-3, 7") == [0, 1, 2, 3, 7]
    assert parse_features(None) is None
    for wrong in ("", "a", "3-1", "1-", "0-99999999999"):
        with pytest.raises(InputError, match="--features"):
            parse_features(wrong)
    with pytest.raises(InputError, match="--endpoint 'localhost'"):
        Endpoint("localhost", "m")
