"""`scopebase key`, `scopebase audit`, and what `scopebase serve` asks before it listens."""

# ruff: noqa: F811 - pytest hands fixtures over by their names
from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.services.access.rates import Rate
from schema.settings import Settings
from tests.scopebase.test_cli import Call, call  # noqa: F401


@pytest.fixture
def home(indexed: Settings, tmp_path: Path) -> Path:
    return Path(shutil.copytree(indexed.home, tmp_path / "home"))


def test_a_key_from_first_to_last(call: Call, home: Path) -> None:
    made = call("--home", home, "key", "create", "ann", "--scope", "label", "--expires", "4w")
    secret = made.out.strip()
    assert (made.status, len(secret), secret[:3]) == (0, 46, "sb_")
    assert "ann may read, label until" in made.err
    assert secret not in made.err
    bob = call("--home", home, "key", "create", "bob", "--expires", "never", "--json").json
    assert (bob["id"], bob["scopes"], bob["expires_at"]) == ("bob", ["read"], None)
    listed = call("--home", home, "key", "list", "--json").json["data"]
    assert [(k["id"], k["state"], k["prefix"]) for k in listed] == [
        ("ann", "live", secret[:8]),
        ("bob", "live", bob["secret"][:8]),
    ]
    assert secret not in json.dumps(listed)
    assert "revoked on" in call("--home", home, "key", "revoke", "ann").out
    shown = call("--home", home, "key", "list").out
    assert secret[:8] in shown
    assert "revoked" in shown
    log = call("--home", home, "audit", "--json").json["data"]
    assert [(e["action"], e["target"]) for e in log] == [
        ("key.revoke", "ann"),
        ("key.create", "bob"),
        ("key.create", "ann"),
    ]
    one = call("--home", home, "audit", "--action", "key.create", "--limit", "1")
    assert "bob" in one.out
    assert "--cursor" in one.out
    assert "2999" not in call("--home", home, "audit", "--since", "2999-01-01").out


def test_a_deployments_first_key_is_brought_along(call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST_KEY", secret := "sb_" + "ab" * 32)
    bring = (
        "--home",
        home,
        "key",
        "create",
        "admin",
        "--scope",
        "admin",
        "--expires",
        "never",
        "--secret-env",
        "FIRST_KEY",
    )
    for _start in range(2):
        made = call(*bring)
        assert (made.status, made.out) == (0, "")
        assert "admin may read, label, write, admin for ever; its secret is what FIRST_KEY holds" in made.err
        assert secret not in made.err
    listed = call("--home", home, "key", "list", "--json").json["data"]
    assert [(key["id"], key["prefix"]) for key in listed] == [("admin", secret[:8])]
    monkeypatch.setenv("FIRST_KEY", "sb_" + "cd" * 32)
    assert "there is a key named 'admin' (live); names are not used twice" in call(*bring).err
    monkeypatch.setenv("FIRST_KEY", "secret")
    assert "a key's secret is sb_ and at least 32 letters" in call(*bring).err
    monkeypatch.delenv("FIRST_KEY")
    assert "--secret-env FIRST_KEY: that variable is not set" in call(*bring).err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("key", "revoke", "nobody"), "no key named 'nobody'"),
        (("key", "create", "a b"), "'a b' cannot name a key"),
        (("key", "create", "a", "--expires", "90"), "hours, days or weeks such as 12h, 90d or 4w, or never"),
        (("serve", "--auth"), "this home has none; make one with 'scopebase key create NAME'"),
        (("serve", "--auth", "--no-auth"), "exclude each other"),
        (
            ("serve", "--host", "0.0.0.0"),
            "make one with 'scopebase key create NAME', or add --no-auth if that is meant",
        ),
        (("serve", "--rate-limit", "fast"), "such as 50/s or 600/m, or none"),
        (("serve", "--model", "m", "--workers", "2"), "every process would load the model"),
        (("serve", "--max-body", "8"), "--max-body '8': a size such as 500kB, 8MB or 4GB"),
    ],
)
def test_refusals_are_one_line(call: Call, indexed: Settings, args: tuple[str, ...], words: str) -> None:
    said = call("--home", indexed.home, *args)
    assert (said.status, said.out) == (2, "")
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1


LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})


@pytest.mark.parametrize(
    ("args", "access"),
    [
        ((), {"auth": False, "rate": None, "hosts": LOCAL}),
        (("--auth",), {"auth": True, "rate": None, "hosts": LOCAL}),
        (("--host", "::1"), {"auth": False, "hosts": LOCAL | {"::1"}}),
        (("--host", "0.0.0.0"), {"auth": True, "rate": Rate(100, 1), "hosts": None}),
        (("--host", "0.0.0.0", "--no-auth"), {"auth": False, "rate": Rate(100, 1), "hosts": None}),
        (
            ("--host", "0.0.0.0", "--allow-host", "Lab.example.org"),
            {"auth": True, "hosts": LOCAL | {"0.0.0.0", "lab.example.org"}},
        ),
        (
            ("--rate-limit", "9/m", "--max-body", "1kB", "--time-limit", "5"),
            {"rate": Rate(9, 60), "body_bytes": 1000, "seconds": 5},
        ),
        (
            ("--allow-origin", "https://a.org/", "--max-concurrent", "3"),
            {"origins": ("https://a.org",), "concurrent": 3},
        ),
    ],
)
def test_what_the_options_of_serve_mean(
    call: Call,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    access: dict[str, Any],
) -> None:
    import uvicorn

    from scopebase.cli import serve, worker

    monkeypatch.setenv(worker.ACCESS, "")  # all are put back afterwards
    monkeypatch.setenv(worker.MEANING, "")
    monkeypatch.setenv("SCOPEBASE_HOME", "")
    monkeypatch.setattr(
        uvicorn, "run", lambda app, **given: started.append((given, worker.make() if isinstance(app, str) else app))
    )
    monkeypatch.setattr(serve, "run_server", lambda config, _generator: started.append(({}, config.app)))
    started: list[tuple[dict[str, Any], Any]] = []
    call("--home", home, "key", "create", "ann")
    assert call("--home", home, "serve", *args).status == 0
    given, app = started[0]
    app.state.library.home.close()
    rules = next(each.kwargs["access"] for each in app.user_middleware if "access" in each.kwargs)
    assert {name: getattr(rules, name) for name in access} == access
    assert given.get("workers", 1) == (2 if "--workers" in args else 1)


@pytest.fixture
def served(call: Call, home: Path) -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """`scopebase serve --auth --log-requests` as a process: address, key, process."""
    scopebase = [sys.executable, "-m", "scopebase", "--home", str(home)]
    secret = call("--home", home, "key", "create", "ann").out.strip()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [
        *scopebase,
        "serve",
        "--auth",
        "--port",
        str(port),
        "--log-requests",
        "--rate-limit",
        "1000/s",
        "--workers",
        "2",
    ]
    with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        yield f"http://127.0.0.1:{port}/v1", secret, process
        process.terminate()


def test_a_service_that_asks_for_a_key(served: tuple[str, str, subprocess.Popen[str]]) -> None:
    url, secret, process = served
    for _ in range(900):
        try:
            urllib.request.urlopen(f"{url}/health")
            break
        except OSError:
            time.sleep(0.1)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{url}/saes")
    assert refused.value.code == 401
    asked = urllib.request.Request(f"{url}/saes?limit=1", headers={"x-api-key": secret, "x-request-id": "try-1"})
    with urllib.request.urlopen(asked) as answer:
        assert len(json.load(answer)["data"]) == 1
        assert answer.headers["x-request-id"] == "try-1"
        assert answer.headers["ratelimit"].startswith('"asker";r=')
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{url}/health", headers={"host": "evil.example.org"}))
    assert refused.value.code == 400
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    lines = [json.loads(line) for line in process.stderr.read().splitlines() if line.startswith("{")]
    assert [(line["path"], line["status"], line["actor"]) for line in lines][-3:] == [
        ("/v1/saes", 401, None),
        ("/v1/saes", 200, "ann"),
        ("/v1/health", 400, None),
    ]
    assert secret not in str(lines)
