"""The store in a bucket: commits, what is removed and swept there, and every fault in one sentence, against a real S3 server."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import pytest
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata

from schema import publish as publishing
from schema import upkeep
from schema.bucket import Bucket, storage_options
from schema.errors import HomeError, ScopebaseError, Unreachable
from schema.home import check_writable, find_home, make_home
from schema.publish import discard, publish, write
from schema.settings import Settings
from schema.store import Store
from schema.upkeep import maintain
from tests.objects import QUICK, Fault, serving
from tests.schema.test_publish import keys, rows


@pytest.fixture
def store(bucket: Any, request: pytest.FixtureRequest) -> Iterator[Store]:
    made = Store(bucket.url(request.node.name))
    made.create("abc", ["samples"])
    bucket.clear()
    yield made
    bucket.remove(request.node.name)


def test_two_committers_at_once_cannot_both_win(store: Store) -> None:
    """Each publishes everything that is staged, as committers do; whatever the order, every row is there once."""
    staged = [write(store, "samples", rows(10 * i, 3)) for i in range(4)]
    everything = [fragment for fragments in staged for fragment in fragments]
    with ThreadPoolExecutor(4) as pool:
        new = list(pool.map(lambda _: publish(Store(store.url), "samples", lambda: everything), range(4)))
    assert sum(new) == 4
    assert keys(store) == [10 * i + j for i in range(4) for j in range(3)]


def test_a_stale_commit_is_refused(store: Store) -> None:
    stale = store.latest("samples")
    fragments = write(store, "samples", rows(0, 2))
    publish(store, "samples", lambda: fragments)
    late = [FragmentMetadata.from_json(f) for f in write(store, "samples", rows(0, 2))]
    change = lance.LanceOperation.Update(removed_fragment_ids=[publishing.fence_id(stale)], new_fragments=late)
    with pytest.raises(CommitConflictError):
        lance.LanceDataset.commit(
            store.uri("samples"),
            change,
            read_version=stale.version,
            max_retries=0,
            storage_options=store.options,
        )


@pytest.mark.parametrize("kind", ["lost", "hang_up"])
def test_a_commit_whose_answer_is_lost_is_not_made_twice(store: Store, bucket: Any, kind: str) -> None:
    fragments = write(store, "samples", rows(0, 5))
    bucket.fail(Fault(kind, methods=("PUT",), path="_versions", most=1))
    publish(store, "samples", lambda: fragments)
    assert bucket.counts()["faults"] == 1
    assert keys(store) == [0, 1, 2, 3, 4]


def test_a_server_that_overwrites_is_refused_before_anything_is_written(
    bucket: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """On one that ignores If-None-Match two commits of one version would both succeed, and one of them vanish."""
    bucket.fail(Fault("overwrite"))
    settings = Settings.read(tmp_path, {"SCOPEBASE_STORE_URL": bucket.url(request.node.name)})
    with pytest.raises(HomeError, match="ignores If-None-Match"):
        make_home(settings)
    assert bucket.files(request.node.name) == {}


def test_discarded_fragments_are_gone(store: Store, bucket: Any, request: pytest.FixtureRequest) -> None:
    before = bucket.files(request.node.name)
    fragments = write(store, "samples", rows(0, 5))
    assert bucket.files(request.node.name) != before
    discard(store, {"samples": fragments})
    assert bucket.files(request.node.name) == before


def test_orphans_are_swept_once_nobody_can_be_writing_them(
    store: Store, bucket: Any, request: pytest.FixtureRequest
) -> None:
    """One left by a worker that died yesterday goes, one of a minute ago stays; and nothing while something is staged."""
    old, young = (json.loads(write(store, "samples", rows(k, 1))[0])["files"][0]["path"] for k in (0, 1))
    kept = write(store, "samples", rows(2, 1))
    publish(store, "samples", lambda: kept)
    path = bucket.folder / "scopebase" / request.node.name / "samples.lance" / "data" / old
    past = time.time() - (upkeep.ORPHAN_AGE + timedelta(hours=1)).total_seconds()
    os.utime(path, (past, past))

    def there() -> set[str]:
        return {name.rsplit("/", 1)[-1] for name in bucket.files(request.node.name)} & {old, young}

    maintain(store, "samples", lambda: False)
    assert there() == {old, young}
    maintain(store, "samples", lambda: True)
    assert there() == {young}
    assert keys(store) == [2]


def test_has_asks_once_and_offers_remembers(store: Store, bucket: Any) -> None:
    assert not store.has("logits")
    bucket.clear()
    assert not store.offers("logits")
    assert store.has("samples")
    assert store.has("samples")
    assert bucket.counts()["LIST"] <= 1
    assert store.lacking(["samples", "logits"]) == ["logits"]
    store.create("abc", ["logits"])
    assert store.offers("logits")


SENTENCES = [
    (Fault(status=404, code="NoSuchBucket"), HomeError, "there is no bucket 'scopebase'"),
    (Fault(status=403, code="InvalidAccessKeyId"), HomeError, "does not know these credentials; check AWS_ACCESS_KEY_ID"),
    (Fault(status=403, code="SignatureDoesNotMatch"), HomeError, "does not know these credentials"),
    (Fault(status=400, code="ExpiredToken"), HomeError, "have expired"),
    (Fault(status=403, code="RequestTimeTooSkewed"), HomeError, "refuses this machine's clock"),
    (Fault(status=403, code="AccessDenied", methods=("PUT",)), HomeError, "may not use"),
    (Fault(status=301, code="PermanentRedirect"), HomeError, "another region; set AWS_REGION"),
    (Fault(status=503, code="SlowDown"), Unreachable, "is overloaded"),
    (Fault(status=500), Unreachable, "a fault of its own (500 Internal Server Error)"),
    (Fault("hang_up"), Unreachable, "does not answer at http://127.0.0.1"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "kind", "said"), SENTENCES, ids=[f"{f.kind}-{f.code}" for f, _, _ in SENTENCES])
def test_each_fault_is_one_sentence_before_any_work(
    bucket: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: Fault,
    kind: type[ScopebaseError],
    said: str,
) -> None:
    monkeypatch.setenv("SCOPEBASE_STORE_OPTIONS", QUICK)
    bucket.fail(fault)
    settings = Settings.read(tmp_path, {"SCOPEBASE_STORE_URL": bucket.url("faulty")})
    with pytest.raises(ScopebaseError) as caught:
        check_writable(settings)
    assert said in str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "environ", "said"),
    [
        ("s3://scopebase/h", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "does not answer at http://127.0.0.1:9"),
        ("s3://scopebase/h", {"SCOPEBASE_STORE_OPTIONS": "fast"}, "is no JSON object"),
        ("s3://scopebase/h", {"SCOPEBASE_STORE_OPTIONS": '{"color": "red"}'}, "names an option that s3:// stores do not have"),
        ("ftp://scopebase/h", {}, "is no activation store"),
        ("s3:///h", {}, "is no activation store"),
        ("az://scopebase/h", {}, "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"),
    ],
)  # fmt: skip
def test_each_wrong_setting_is_one_sentence(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, environ: dict[str, str], said: str
) -> None:
    monkeypatch.setenv("SCOPEBASE_STORE_OPTIONS", QUICK)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    begin = time.monotonic()
    with pytest.raises(ScopebaseError) as caught:
        find_home(Settings.read(tmp_path, {"SCOPEBASE_STORE_URL": url}))
    assert said in str(caught.value)
    assert time.monotonic() - begin < 5


def test_options_reach_lance_and_obstore_by_their_own_names() -> None:
    given = {
        "SCOPEBASE_STORE_OPTIONS": '{"TIMEOUT": "60s", "allow_http": true}',
        "AWS_ENDPOINT_URL": "https://r2.example",
    }
    options = storage_options("s3://b/p", given)
    assert options["timeout"] == "60s"
    assert options["allow_http"] == "true"
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        assert storage_options("s3://b/p", {name: "http://minio:9000"})["allow_http"] == "true"
    assert "allow_http" not in storage_options("s3://b/p", {"AWS_ENDPOINT_URL": "https://r2.example"})


def test_google_cloud_storage_by_a_service_account(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same server speaks Google's dialect; the address stands in the key file, as for every emulator."""
    key = {
        "gcs_base_url": bucket.endpoint,
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    (tmp_path / "key.json").write_text(json.dumps(key))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
    monkeypatch.setenv("SCOPEBASE_STORE_OPTIONS", '{"allow_http": "true"}')
    store = Store("gs://scopebase/google")
    store.bucket.check_writable()
    store.create("abc", ["samples"])
    fragments = write(store, "samples", rows(0, 3))
    assert publish(store, "samples", lambda: fragments) == 1
    assert publish(store, "samples", lambda: fragments) == 0
    assert (keys(store), store.identity()) == ([0, 1, 2], "abc")


def test_azure_is_asked_at_its_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No emulator comes from PyPI: here only that container, account and key go where they belong."""
    with serving(tmp_path) as server:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "lab")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
        options = {
            **json.loads(QUICK),
            "client_max_retries": "0",
            "azure_endpoint": f"{server.endpoint}/lab",
            "allow_http": "true",
        }
        monkeypatch.setenv("SCOPEBASE_STORE_OPTIONS", json.dumps(options))
        with pytest.raises(ScopebaseError):
            Bucket("az://scopebase/h", storage_options("az://scopebase/h")).tables()
        with pytest.raises(ScopebaseError):
            Store("az://scopebase/h").table("samples")
        asked = server.log()
    assert len(asked) >= 2
    assert all(" /lab/scopebase?restype=container&comp=list" in line for line in asked)
