"""A store in a bucket: Lance's options for it, what lies beside Lance's tables, and its faults in one sentence.

Credentials and endpoints come from the variables that every tool reads (AWS_*, GOOGLE_*, AZURE_*); SCOPEBASE_STORE_OPTIONS, a JSON object,
adds to them by the names of Rust's `object_store`, which Lance and obstore share.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import AzureStore, GCSStore, S3Store

from schema.errors import HomeError, ScopebaseError, Unreachable

OPTIONS = "SCOPEBASE_STORE_OPTIONS"
STORES: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
WORK = {
    "connect_timeout": "3s",
    "timeout": "30s",
    "client_max_retries": "4",
    "client_retry_timeout": "10",
    "download_retry_count": "1",
    "lance_aimd_max_retries": "0",
}
"""Lance tries again in three layers, each as often as the one below fails: by its own numbers a dead endpoint holds it for minutes."""
CLIENT = ("allow_http", "allow_invalid_certificates", "connect_timeout", "proxy_url", "timeout", "user_agent")
LANCE_ONLY = ("lance_", "download_retry_count", "client_", "block_size")
BLOCK = 8 << 20
BATCH = 1000
"""Keys that one request deletes."""


def storage_options(url: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What Lance is told of a bucket beside what it reads from the environment itself.

    Raises:
        HomeError: a kind of store that Scopebase does not know, or options that are no JSON object of texts.
    """
    if urlsplit(url).scheme not in STORES or not urlsplit(url).netloc:
        raise HomeError(
            f"{url} is no activation store; SCOPEBASE_STORE_URL is a directory, or s3://, gs:// or az://BUCKET/PREFIX"
        )
    try:
        asked = json.loads(environ.get(OPTIONS) or "{}")
        given = {
            str(name).lower(): value if isinstance(value, str) else json.dumps(value) for name, value in asked.items()
        }
    except (ValueError, AttributeError) as error:
        raise HomeError(f'{OPTIONS} is no JSON object; write it like {{"timeout": "60s"}}') from error
    plain = {"allow_http": "true"} if _endpoint(given, environ).startswith("http://") else {}
    return {**WORK, **plain, **given}


def _endpoint(options: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> str:
    """The address of an S3 server that is not Amazon's, under any of its names; empty for Amazon's own."""
    asked = next((value for name, value in options.items() if name.endswith("endpoint")), "")
    return asked or environ.get("AWS_ENDPOINT_URL") or environ.get("AWS_ENDPOINT") or ""


@dataclass(frozen=True)
class Object:
    """Something in a bucket."""

    path: str
    """Below the store's prefix."""
    size: int
    modified: datetime


class Bucket:
    """The objects of one store, with what Lance does not do: lists, deletes, and copies from and to files."""

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self.url, self.scheme, self.name = url, parts.scheme, parts.netloc
        self.custom = bool(_endpoint(options))
        client: Any = {name: _flag(options[name]) for name in CLIENT if name in options}
        config = {n: v for n, v in options.items() if n not in CLIENT and not n.startswith(LANCE_ONLY)}
        retry: Any = {
            "max_retries": int(options["client_max_retries"]),
            "retry_timeout": timedelta(seconds=float(options["client_retry_timeout"])),
        }
        with in_words(url):
            self._store = STORES[self.scheme](
                self.name,
                prefix=parts.path.strip("/") or None,
                config=config,
                client_options=client,
                retry_config=retry,
            )

    def tables(self) -> set[str]:
        """The tables of which something is there, in one request; asked first, so that what keeps the store from answering is said at once.

        Raises:
            HomeError: no such bucket, no credentials, wrong ones, a clock that is off.
            Unreachable: the endpoint does not answer.
        """
        with in_words(self.url):
            found = obstore.list_with_delimiter(self._store)["common_prefixes"]
        return {path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".lance") for path in found}

    def check_writable(self) -> None:
        """Writes a small object and removes it. Where somebody's own S3 is asked, also that it refuses to write it twice:
        two commits at once are told apart by nothing else.

        Raises:
            HomeError: it cannot be written, or takes a second write for a first one; see `tables` too.
        """
        place = f"probe-{uuid.uuid4().hex}"
        with in_words(self.url):
            self._put_new(place)  # False says that its first answer was lost, and that is an answer too
            overwritten = self.custom and self.scheme == "s3" and self._put_new(place)
            obstore.delete(self._store, place)
        if overwritten:
            raise HomeError(
                f"the object store of {self.url} ignores If-None-Match, so that two writers could overwrite each other's commits; "
                "use one with conditional writes (AWS S3, Cloudflare R2, MinIO since 2024, Ceph since Tentacle)"
            )

    def _put_new(self, path: str) -> bool:
        """Whether an object was written that was not there."""
        try:
            obstore.put(self._store, path, b"scopebase", mode="create")
        except AlreadyExistsError:
            return False
        return True

    def has(self, path: str) -> bool:
        """Whether there is an object of exactly this name."""
        with in_words(self.url):
            try:
                obstore.head(self._store, path)
            except (NotFoundError, FileNotFoundError):
                return False
            return True

    def empty(self) -> bool:
        """Whether nothing at all is below the prefix; one request."""
        with in_words(self.url):
            return not next(iter(obstore.list(self._store, chunk_size=1)), None)

    def list(self, prefix: str = "") -> Iterator[Object]:
        """Every object below a prefix, a thousand a request."""
        with in_words(self.url):
            for chunk in obstore.list(self._store, prefix or None, chunk_size=BATCH):
                for each in chunk:
                    yield Object(each["path"], each["size"], each["last_modified"])

    def delete(self, paths: Iterable[str]) -> None:
        """Removes objects, a thousand a request; those that are gone already are no fault."""
        every = list(paths)
        with in_words(self.url):
            for begin in range(0, len(every), BATCH):
                with suppress(NotFoundError, FileNotFoundError):
                    obstore.delete(self._store, every[begin : begin + BATCH])

    def fetch(self, path: str, to: Path) -> str:
        """Copies an object into a file, block by block, and tells its SHA-256.

        Raises:
            FileNotFoundError: it is not there.
        """
        to.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with in_words(self.url), to.open("wb") as out:
            for block in obstore.get(self._store, path).stream(min_chunk_size=BLOCK):
                digest.update(block)
                out.write(block)
        return digest.hexdigest()

    def put(self, path: str, source: Path | bytes) -> None:
        """Writes an object from a file or bytes, in parts where it is large."""
        with in_words(self.url):
            obstore.put(self._store, path, source)


def _flag(value: str) -> Any:
    return {"true": True, "false": False}.get(value, value)


Words = tuple[tuple[str, ...], str]
CONFIGURATION: tuple[Words, ...] = (
    (
        ("NoSuchBucket", "ContainerNotFound", "specified bucket does not exist"),
        "there is no bucket {bucket!r} for the activation store {url}; make it, or point SCOPEBASE_STORE_URL at another",
    ),
    (
        ("RequestTimeTooSkewed", "RequestExpired"),
        "the object store of {url} refuses this machine's clock; set the time (timedatectl set-ntp true) and run the same command again",
    ),
    (
        ("ExpiredToken", "TokenRefreshRequired", "InvalidToken"),
        "the credentials for {url} have expired; renew them and run the same command again",
    ),
    (
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed", "InvalidAuthenticationInfo", "invalid_grant"),
        "the object store of {url} does not know these credentials; check {credentials}",
    ),
    (
        ("Failed to get AWS credentials", "token request", "metadata/identity", "no storage account configured", "MissingCredentials",
         "instance credentials", "Missing account", "Account must be", "169.254.169.254", "latest/api/token", "latest/meta-data"),
        "there are no credentials for {url}; set {credentials}",
    ),
    (
        ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint", "redirect without LOCATION"),
        "the bucket of {url} is in another region; set AWS_REGION to its own",
    ),
    (
        ("AccessDenied", "AuthorizationPermissionMismatch", "AuthorizationFailure", "403 Forbidden", "lacked the necessary privileges"),
        "these credentials may not use {url} so; it needs to list, read, write and delete objects (only to list and read for questions)",
    ),
    (("UnknownConfigurationKey", "Configuration key"), f"{OPTIONS} names an option that {{scheme}}:// stores do not have: {{first}}"),
)  # fmt: skip
"""What nothing mends but somebody who changes something: (what the service says, the sentence)."""
AWAY: tuple[Words, ...] = (
    (
        ("SlowDown", "ServerBusy", "503 Service", "429 Too", "TooManyRequests", "OperationTimedOut"),
        "the object store of {url} is overloaded and turned requests away again and again; wait a little and try the same again",
    ),
    (
        ("status code: 5", "InternalError", "500 Internal"),
        "the object store of {url} has a fault of its own ({status}); try the same again",
    ),
    (
        ("error sending request", "HTTP error", "timed out", "Timeout", "connection closed", "error decoding response body",
         "request or response body error", "Requested range", "Content-Range", "end of file before message length", "builder error",
         "Generic memory error"),
        "the object store of {url} does not answer{endpoint}; check the address and the network, and try the same again",
    ),
)  # fmt: skip
"""What may be over in a while."""
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT (the path of a service account's key)",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
OTHER = "the object store of {url} could not do it: {first}"
SPEAKERS = (
    "Generic S3",
    "Generic GCS",
    "Generic MicrosoftAzure",
    "Generic N/A",
    "Error performing",
    "object store",
    "LanceError(IO)",
)


def fault_of(url: str, error: BaseException) -> ScopebaseError | None:
    """A bucket's fault as one sentence, None where it is none: an object that is not there is the caller's to judge."""
    text = str(error)
    if not isinstance(error, BaseError) and not any(speaker in text for speaker in SPEAKERS):
        return None
    parts = urlsplit(url)
    place = _endpoint({}) if parts.scheme == "s3" else ""
    words = {
        "url": url,
        "bucket": parts.netloc,
        "scheme": parts.scheme,
        "credentials": CREDENTIALS.get(parts.scheme, "them"),
        "endpoint": f" at {place}" if place else "",
        "first": text.splitlines()[0][:160],
        "status": found.group(1) if (found := re.search(r"status code: (\d+ [A-Z][A-Za-z ]+)", text)) else "status 5xx",
    }
    for kind, table in ((HomeError, CONFIGURATION), (Unreachable, AWAY)):
        for signs, sentence in table:
            if any(sign in text for sign in signs):
                return kind(sentence.format(**words))
    return Unreachable(OTHER.format(**words)) if "Generic " in text else None


@contextmanager
def in_words(url: str) -> Iterator[None]:
    """A bucket's faults in one sentence.

    Raises:
        HomeError: it is set up wrong.
        Unreachable: it does not answer now.
        FileNotFoundError: what was asked for is not there.
    """
    try:
        yield
    except (BaseError, OSError, ValueError, RuntimeError) as error:
        known = fault_of(url, error)
        if known is None and isinstance(error, NotFoundError):
            raise FileNotFoundError(str(error).splitlines()[0]) from error
        if known is None:
            raise
        raise known from error
