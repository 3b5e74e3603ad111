"""Backup of both stores to one consistent point, into a directory, and back, into either kind of database.

SQL is read first, in one transaction; then the store's newest versions, which hold at least what SQL lists. What a removal takes away
meanwhile is noticed, and the backup begins again. A backup is whole once its `backup.json` is there, which is written last.

    backup.json          what it is, and the SHA-256 of every file
    database.jsonl.gz    a line a row: ["table", {column: value}]
    store/...            the files of each table's newest version
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Integer, MetaData, Table, func, inspect, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from schema.database import Database, check_revision, current_revision, known_revision, upgrade
from schema.durable import fsync_files, is_cut
from schema.errors import HomeError, InputError, WorkFailed
from schema.home import Home, check_writable, find_home
from schema.publish import FAULTS, overtaken, storage_faults
from schema.settings import Settings
from schema.store import Store
from schema.tables import Removal

FORMAT = "scopebase backup 1"
DATABASE = "database.jsonl.gz"
HALF = "half-restored"
"""A file in the store while it is being restored."""
ATTEMPTS = 5
ROWS = 1000
LONGEST_LINE = 64 << 20
"""Characters of a row."""
_FILE = re.compile(r"store/\w+\.lance(?:/[\w.-]+)+")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Backup:
    """What `backup.json` says."""

    format: str
    made_at: str
    revision: str
    rows: dict[str, int]
    sequences: dict[str, int]
    """Table -> the largest id that was ever given, which must not come back."""
    files: dict[str, str]
    """Path -> SHA-256."""
    n_bytes: int


def back_up(home: Home, folder: Path, tell: Tell = lambda _what: None) -> Backup:
    """Copies both stores into a new directory.

    Raises:
        InputError: the directory is there.
        WorkFailed: the disk is full, or the home changes faster than it can be copied.
    """
    if folder.exists():
        raise InputError(f"{folder} is there already; name a directory that is not")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for _ in range(ATTEMPTS):
            removals = _removals(home)
            rows, sequences = _dump(home.database, part / DATABASE, tell)
            files = {DATABASE: _sha256(part / DATABASE)}
            for table in home.tables():
                tell(f"copying {table}")
                files |= _copy_table(home, table, part)
            if _removals(home) == removals:
                break
        else:
            raise WorkFailed("runs were removed while they were copied, again and again; try later")
        n_bytes = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        revision = current_revision(home.database) or ""
        made = Backup(FORMAT, moment, revision, rows, sequences, files, n_bytes)
        (part / "backup.json").write_text(json.dumps(asdict(made), indent=1))
        fsync_files(path for path in part.rglob("*") if path.is_file())
        part.replace(folder)
        return made
    except OSError as error:
        raise WorkFailed(f"the backup {folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def restore(folder: Path, settings: Settings, tell: Tell = lambda _what: None) -> Backup:
    """Makes a home of a backup; it may have another kind of database than the one that was backed up.

    Raises:
        InputError: no backup, a damaged one, or one of a newer Scopebase; the home is as it was.
        HomeError: there is a home already.
    """
    made = read_backup(folder)
    tell("checking the backup")
    for path, sha256 in made.files.items():
        if not (folder / path).is_file() or _sha256(folder / path) != sha256 or is_cut(folder / path):
            raise InputError(f"{folder / path} is damaged or gone; take another backup")
    n_rows = _counted(folder / DATABASE)
    if n_rows != made.rows:
        raise InputError(
            f"{folder / DATABASE} has not the rows that {folder / 'backup.json'} counts; take another backup"
        )
    check_writable(settings)
    _clear_half(settings)
    database = _empty(settings)
    store = Store(settings.store_url)
    _put(b"", store, HALF)
    for path in (path for path in made.files if path != DATABASE):
        tell(f"copying {path.split('/')[1]}")
        _put(folder / path, store, path.removeprefix("store/"))
    tell("filling the database")
    _load(database, folder / DATABASE, made)
    database.close()
    if store.local:
        Path(store.url, HALF).unlink()
    else:
        store.bucket.delete([HALF])
    return made


def _clear_half(settings: Settings) -> None:
    """Removes what a restore that died has left; the mark says that nothing else is there."""
    store, file = Store(settings.store_url), settings.database_file
    if not (Path(store.url, HALF).exists() if store.local else store.bucket.has(HALF)):
        return
    if file is not None:
        for path in file.parent.glob(f"{file.name}*"):
            path.unlink()
    if store.local:
        shutil.rmtree(store.url)
    else:
        store.bucket.delete(each.path for each in store.bucket.list())


def read_backup(folder: Path) -> Backup:
    """What a directory says of itself.

    Raises:
        InputError: it is no whole backup, or one of a newer Scopebase.
    """
    try:
        made = TypeAdapter(Backup).validate_json((folder / "backup.json").read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no whole backup: it has no readable backup.json") from error
    if made.format != FORMAT or not known_revision(made.revision):
        raise InputError(
            f"{folder} was made by a newer Scopebase ({made.format[:40]!r}, schema {made.revision[:40]!r}); "
            "upgrade with: pip install -U scopebase"
        )
    strange = next((path for path in made.files if path != DATABASE and not _of_a_store(path)), None)
    if strange is not None or DATABASE not in made.files:
        raise InputError(
            f"{folder} is no backup: a file {(strange or DATABASE)[:80]!r} in its list cannot be one of a store"
        )
    return made


def _of_a_store(path: str) -> bool:
    """Whether it stays below the folder, wherever it comes from."""
    return _FILE.fullmatch(path) is not None and not {".", ".."} & set(path.split("/"))


def _counted(path: Path) -> dict[str, int]:
    """Table -> rows of a dump, each of which can be read: nothing is made of a backup before all of it is known to be whole.

    Raises:
        InputError: it cannot.
    """
    counts: dict[str, int] = {}
    try:
        for name, rows in _blocks(path, zoned=False):
            counts[name] = counts.get(name, 0) + len(rows)
    except (OSError, EOFError, ValueError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise InputError(f"{path} is damaged ({str(error)[:120]}); take another backup") from None
    return counts


def _removals(home: Home) -> int:
    return home.database.scalar(select(func.count()).select_from(Removal)) or 0


def _dump(database: Database, path: Path, tell: Tell) -> tuple[dict[str, int], dict[str, int]]:
    """Every row as one transaction sees them."""
    counts: dict[str, int] = {}
    with database.reading() as session, gzip.open(path, "wt", encoding="utf-8", compresslevel=3) as file:
        if database.engine.dialect.name == "postgresql":
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        for table in _tables(session.connection()):
            tell(f"reading {table.name}")
            for row in session.execute(select(table).execution_options(yield_per=ROWS)).mappings():
                counts[table.name] = counts.get(table.name, 0) + 1
                file.write(json.dumps([table.name, {name: _plain(value) for name, value in row.items()}]) + "\n")
        return counts, _sequences(session.connection())


def _tables(connection: Connection) -> list[Table]:
    """Those of the database itself, so that an older schema's are read as they are; parents before their children."""
    metadata = MetaData()
    metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != "alembic_version"]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"$time": value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC).isoformat()}
    return {"$bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _value(value: Any, zoned: bool) -> Any:
    if isinstance(value, dict) and value.keys() == {"$time"}:
        moment = datetime.fromisoformat(value["$time"])
        return moment if zoned else moment.replace(tzinfo=None)
    if isinstance(value, dict) and value.keys() == {"$bytes"}:
        return base64.b64decode(value["$bytes"])
    return value


def _sequences(connection: Connection) -> dict[str, int]:
    """The largest id that each table has given."""
    if connection.dialect.name == "sqlite":
        there = inspect(connection).has_table("sqlite_sequence")
        rows = connection.execute(text("SELECT name, seq FROM sqlite_sequence")).all() if there else []
        return {name: int(seq) for name, seq in rows}
    named = text("SELECT sequencename, COALESCE(last_value, 0) FROM pg_sequences WHERE schemaname = current_schema()")
    return {name.removesuffix("_id_seq"): int(last) for name, last in connection.execute(named)}


def _copy_table(home: Home, table: str, part: Path) -> dict[str, str]:
    """The files of a table's newest version; begun again where maintenance takes one away."""
    for _ in range(ATTEMPTS):
        place = part / "store" / f"{table}.lance"
        shutil.rmtree(place, ignore_errors=True)
        with storage_faults(home.store):
            try:
                return {
                    f"store/{table}.lance/{path}": _fetch(home.store, f"{table}.lance/{path}", place / path)
                    for path in _newest_files(home, table)
                }
            except FAULTS as error:
                if not overtaken(error):
                    raise
    raise WorkFailed(f"the table {table} changes faster than it can be copied; try when less is indexed")


def _newest_files(home: Home, table: str) -> list[str]:
    snapshot = home.store.latest(table)
    rows = (row for batch in snapshot.tracked_files() for row in batch.to_pylist())
    return [row["path"] for row in rows if row["version"] == snapshot.version]


def _fetch(store: Store, path: str, to: Path) -> str:
    """Copies one file of a store, and tells its hash."""
    if not store.local:
        return store.bucket.fetch(path, to)
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(store.url, path), to)
    return _sha256(to)


def _put(source: Path | bytes, store: Store, to: str) -> None:
    """Writes one file of a store."""
    if not store.local:
        store.bucket.put(to, source)
        return
    place = Path(store.url, to)
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, bytes):
        place.write_bytes(source)
    else:
        shutil.copyfile(source, place)
    fsync_files([place])


def _empty(settings: Settings) -> Database:
    """The database that is to be filled, with nothing in it."""
    folder = settings.store_folder
    taken = folder.exists() if folder is not None else not Store(settings.store_url).bucket.empty()
    if taken or find_home(settings) is not None:
        raise HomeError(f"there is a home at {settings.home} already; restore into another one with --home")
    if settings.database_file is not None:
        settings.database_file.parent.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database_url)
    if check_revision(database) != "empty":
        raise HomeError(f"the database of {settings.home} is not empty; restore into another one")
    return database


def _load(database: Database, path: Path, made: Backup) -> None:
    """Makes the tables as they were, fills them, and brings them up to date.

    Raises:
        InputError: a row is none of its table.
    """
    upgrade(database, made.revision)
    try:
        _fill(database, path, made)
    except (KeyError, SQLAlchemyError) as error:
        why = str(error.orig if isinstance(error, DBAPIError) else error).strip().splitlines()[0][:160]
        raise InputError(f"{path} does not fit schema {made.revision} ({why}); take another backup") from error
    upgrade(database)


def _fill(database: Database, path: Path, made: Backup) -> None:
    with database.writing(alone=True) as session:
        connection = session.connection()
        tables = {table.name: table for table in _tables(connection)}
        for name, rows in _blocks(path, connection.dialect.name == "postgresql"):
            connection.execute(tables[name].insert(), rows)
        _set_sequences(connection, tables.values(), made.sequences)


def _blocks(path: Path, zoned: bool) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(table, rows), so many rows of one table at a time."""
    name = ""
    rows: list[dict[str, Any]] = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        while line := file.readline(LONGEST_LINE + 1):
            table, row = json.loads(line)
            if rows and (table != name or len(rows) == ROWS):
                yield name, rows
                rows = []
            name = table
            rows.append({column: _value(value, zoned) for column, value in row.items()})
    if rows:
        yield name, rows


def _set_sequences(connection: Connection, tables: Iterable[Table], sequences: dict[str, int]) -> None:
    """The next id of each table is one that was never given. SQLite keeps count only where an id must not come back."""
    for table in tables:
        if "id" not in table.c or not isinstance(table.c["id"].type, Integer):
            continue
        last = max(sequences.get(table.name, 0), connection.scalar(select(func.max(table.c["id"]))) or 0)
        given = {"name": table.name, "last": last}
        if connection.dialect.name == "sqlite":
            connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), given)
            connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)"), given)
        elif last:
            connection.execute(text("SELECT setval(pg_get_serial_sequence(:name, 'id'), :last)"), given)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
