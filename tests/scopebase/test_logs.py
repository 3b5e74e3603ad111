"""Lines that people read, lines that machines read, and the request that both belong to, across processes."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from indexer.jobs import work_off
from indexer.progress import Progress
from schema.errors import InputError
from schema.home import open_home
from schema.queue import Queue
from schema.records import RunReport
from schema.tables import Job
from schema.tracing import REQUEST
from scopebase.cli.logs import check_format, log_to_standard_error
from tests.laboratory import make_lab

LOG = logging.getLogger("scopebase.jobs")
JOB = {"kind": "index", "model": "a/b", "sae": "a/c", "datasets": [{"name": "d", "source": "hub:a/d"}]}


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SCOPEBASE_LOG_FORMAT", "text")
    names = ("scopebase", "uvicorn.error", "scopebase.requests")
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).level) for name in names}
    yield
    for name, (handlers, level) in before.items():
        logging.getLogger(name).handlers = handlers
        logging.getLogger(name).setLevel(level)


def test_the_lines_of_a_job_bear_the_id_of_the_request_that_submitted_it(
    tmp_path: Path, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service and the worker have nothing in common but the database."""
    settings = make_lab(tmp_path, database_url).home.settings
    with TestClient(create_app(open_home(settings)), base_url="http://127.0.0.1") as client:
        for id_ in ("morning-1", "morning-2"):
            assert client.post("/v1/jobs", json=JOB, headers={"x-request-id": id_}).status_code == 202
    seen = []

    def do(job: Job, progress: Progress) -> list[RunReport]:
        seen.append((job.id, REQUEST.get()))
        progress.say("half way")
        return []

    log_to_standard_error("json")
    capsys.readouterr()
    work_off(Queue(open_home(settings).database), do, threading.Event(), LOG.info, once=True, keep_days=90)
    assert seen == [(1, "morning-1"), (2, "morning-2")]
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["request"], line["message"]) for line in lines] == [
        (f"morning-{n}", f"job {n}: {words}") for n in (1, 2) for words in ("attempt 1", "half way", "finished")
    ]
    assert REQUEST.get() is None


def test_a_fault_is_one_line_with_its_trace_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_standard_error("json")
    try:
        raise ValueError("no")
    except ValueError:
        LOG.exception("a pass failed")
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["logger"], line["message"]) == ("error", "scopebase.jobs", "a pass failed")
    assert line["exception"].endswith("ValueError: no")
    assert "request" not in line


def test_lines_for_people_and_lines_of_requests(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_standard_error("text", requests=True)
    token = REQUEST.set("ask\x1b-7")
    try:
        LOG.info("job 3: finished")
        logging.getLogger("scopebase.requests").info('{"id": "ask-7"}')
    finally:
        REQUEST.reset(token)
    one, other = capsys.readouterr().err.splitlines()
    assert one[8:] == " job 3: finished [request ask·-7]"
    assert other == '{"id": "ask-7"}'
    log_to_standard_error("text")
    logging.getLogger("scopebase.requests").info("{}")
    assert capsys.readouterr().err == ""


def test_a_format_that_is_none() -> None:
    with pytest.raises(InputError, match="--log-format 'xml': text or json"):
        check_format("xml")
