"""The tables of the engine over PostgreSQL, and its statements: plain SQL that CockroachDB and YugabyteDB understand too."""

from __future__ import annotations

from contextlib import suppress

from psycopg import errors

from ...proto.errors import Status, error
from .postgres_connections import Connection, Statement

FORMAT = 1

# Reading.
BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
STATE = "SELECT version FROM emberfs_state WHERE id = 1"
GET = "SELECT key, value FROM emberfs_kv WHERE key = ANY(%b)"
SCAN = "SELECT key, value FROM emberfs_kv WHERE key >= %b AND key < %b"
EXCEPT = " AND NOT (key >= %b AND key < %b)"
UP, DOWN = " ORDER BY key LIMIT %s", " ORDER BY key DESC LIMIT %s"

# Committing.
BEGIN_COMMIT = "BEGIN ISOLATION LEVEL READ COMMITTED"
LOCK = "UPDATE emberfs_state SET version = version + %s WHERE id = 1 RETURNING version, floor"
TRAIL = "SELECT version, keys, begins, ends FROM emberfs_trail WHERE version > %s ORDER BY version"
PUT = (
    "INSERT INTO emberfs_kv (key, value) SELECT * FROM unnest(%b::bytea[], %b::bytea[]) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)
DELETE = "DELETE FROM emberfs_kv WHERE key = ANY(%b)"
DELETE_RANGE = "DELETE FROM emberfs_kv WHERE key >= %b AND key < %b"
PUT_TRAIL = "INSERT INTO emberfs_trail (version, keys, begins, ends) VALUES (%s, %b::bytea[], %b::bytea[], %b::bytea[])"
RAISE_FLOOR = "UPDATE emberfs_state SET floor = %s WHERE id = 1 AND floor < %s"
FORGET = "DELETE FROM emberfs_trail WHERE version <= %s"

_FORMAT_AND_VERSION = "SELECT format, version FROM emberfs_state WHERE id = 1"
_TABLES = (
    "CREATE TABLE IF NOT EXISTS emberfs_kv (key BYTEA NOT NULL, value BYTEA NOT NULL, PRIMARY KEY (key{order}))",
    "CREATE TABLE IF NOT EXISTS emberfs_trail (version INT8 NOT NULL, keys BYTEA[] NOT NULL, begins BYTEA[] NOT NULL, "
    "ends BYTEA[] NOT NULL, PRIMARY KEY (version{order}))",
    "CREATE TABLE IF NOT EXISTS emberfs_state "
    "(id INT PRIMARY KEY, format INT NOT NULL, version INT8 NOT NULL, floor INT8 NOT NULL)",
    "INSERT INTO emberfs_state (id, format, version, floor) VALUES (1, {format}, 0, 0) ON CONFLICT (id) DO NOTHING",
)


async def opened(connection: Connection, name: str) -> int:
    """Makes what is missing; the version of the store. Raises BAD_FORMAT for one of a newer emberfs, psycopg.Error."""
    state: Statement = (_FORMAT_AND_VERSION, ())
    try:
        [found] = await connection.run([state])
    except errors.UndefinedTable:
        found = []
    if not found:
        await _make(connection)
        [found] = await connection.run([state])
    format_, version = found[0]
    if format_ > FORMAT:
        message = f"{name} has format {format_}, and this emberfs knows {FORMAT}; upgrade emberfs on this server"
        raise error(Status.BAD_FORMAT, message)
    return int(version)


async def _make(connection: Connection) -> None:
    [[(product,)]] = await connection.run([("SELECT version()", ())])
    order = (
        " ASC" if "-YB-" in product else ""
    )  # YugabyteDB would spread the rows by hash; the others do not know the word here
    for statement in _TABLES:
        # Another server may be making the same table, which the system's own tables refuse; then it is there.
        with suppress(
            errors.UniqueViolation, errors.DuplicateTable, errors.DuplicateObject, errors.SerializationFailure
        ):
            await connection.run([(statement.format(order=order, format=FORMAT), ())])
