"""Connects to MLflow: chooses the store, limits every wait, and words errors as one sentence.

MLflow takes over a second to import, and by default waits four minutes for a server that does not answer; this module deals with both.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fedray.config import Config, Tracking
from fedray.errors import ConfigError, Stopped

log = logging.getLogger("fedray.tracking")

#: Seconds that a server may take to answer one request: when the run is made, while rows are sent, while files are sent.
OPEN_PATIENCE, SHIP_PATIENCE, UPLOAD_PATIENCE = 5, 10, 120
#: Seconds within which a server or a database must answer, and within which a database must be open: a new one first makes its tables.
_OPEN_DEADLINE = {"server": 12.0, "tables": 180.0}

_FIRST_DELAY, _LONGEST_DELAY, _TICK = 0.5, 4.0, 0.1

_PASSWORD = re.compile(r"(?P<front>[\w+.-]+://[^/@\s:]*):(?P<secret>[^/@\s]+)@")
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "uc", "databricks-uc")


class TrackingError(ConfigError):
    """MLflow cannot be reached as configured."""


def resolve_uri(tracking: Tracking, base_dir: str | Path) -> str:
    """Choose the store of a run: ``tracking.uri``, else MLFLOW_TRACKING_URI, else SQLite in ``base_dir``.

    Args:
        tracking: the config section.
        base_dir: the folder that holds the runs' output directories.

    Returns:
        A tracking URI that means the same in any working directory.
    """
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"sqlite:///{Path(base_dir).absolute() / 'mlflow.db'}"
    path = sqlite_path(uri)
    return uri if path is None else f"sqlite:///{path}"


def experiment_name(config: Config) -> str:
    """The MLflow experiment of a run: ``experiment``, else the config's name, so that the runs of one config stand side by side."""
    return config.experiment or config.name


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of a SQLite store's file; None for any other store."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()


def artifact_root(uri: str) -> Path | None:
    """Return the folder of a SQLite store's artifacts, beside its database; None for any other store."""
    path = sqlite_path(uri)
    return None if path is None else path.parent / "mlartifacts"


def masked(text: str) -> str:
    """Return ``text`` with the password of each URL in it replaced by ``***``."""
    return _PASSWORD.sub(r"\g<front>:***@", text)


def unmasked(uri: str) -> str:
    """Return a stored URI with its password, which only the environment has.

    Raises:
        TrackingError: MLFLOW_TRACKING_URI does not hold it.
    """
    if ":***@" not in uri:
        return uri
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if masked(given) != uri:
        raise TrackingError(f"tracking.uri: the password for {uri} is not kept; set MLFLOW_TRACKING_URI to the full URI.")
    return given


def load_mlflow() -> Any:
    """Import the ``mlflow`` module, without telemetry and with errors as its only log messages."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


class _Patience:
    """The users of :func:`patience`. MLflow reads its time-outs from the environment at every request, so they are set around our calls."""

    lock = threading.Lock()
    users = 0
    before: dict[str, str | None]


@contextmanager
def patience(seconds: int) -> Iterator[None]:
    """Within the block, let a request to the server fail after ``seconds`` without being repeated; the caller repeats it."""
    ours = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    with _Patience.lock:
        if _Patience.users == 0:
            _Patience.before = {name: os.environ.get(name) for name in ours}
        _Patience.users += 1
        os.environ.update(ours)
    try:
        yield
    finally:
        with _Patience.lock:
            _Patience.users -= 1
            if _Patience.users == 0:
                for name, value in _Patience.before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value


def connect(
    uri: str,
    prepare: Callable[[Any], Any],
    undo: Callable[[Any], None] = lambda client: None,
    wait: float = 0.0,
    cancelled: Callable[[], object] = lambda: False,
) -> tuple[Any, Any]:
    """Open a store and make the first requests to it, within seconds.

    Args:
        uri: a tracking URI.
        prepare: called with the ``MlflowClient``, perhaps several times; its first requests show whether the store answers.
        undo: called with the client, in another thread, if ``prepare`` failed or ended too late.
        wait: seconds for which ``prepare`` is repeated while nothing answers; a warning says so once.
        cancelled: polled while waiting; ends the wait when it returns a true value.

    Returns:
        The client and the result of ``prepare``.

    Raises:
        TrackingError: the store does not exist, does not answer in time, or is no MLflow store.
        Stopped: ``cancelled`` returned a true value.
    """
    _check(uri)
    outcome: dict[str, Any] = {}
    given_up, taking = threading.Event(), threading.Lock()

    def work() -> None:
        client = None
        try:
            mlflow = load_mlflow()
            _make_tables(mlflow, uri)
            if _is_database(uri):
                _reach(uri)
                outcome["answered"] = True
            with patience(OPEN_PATIENCE):
                client = mlflow.MlflowClient(uri)
                prepared = _insist(lambda: prepare(client), uri, wait, given_up)
            with taking:
                if given_up.is_set():
                    raise TimeoutError("the answer came too late")
                outcome["done"] = client, prepared
        except BaseException as error:
            if client is not None:
                with suppress(Exception), patience(OPEN_PATIENCE):
                    undo(client)
            outcome["error"] = error

    # A database driver may retry for minutes before it fails; a separate daemon thread can be abandoned.
    thread = threading.Thread(target=work, name="fedray-tracking-open", daemon=True)
    thread.start()
    began = time.monotonic()

    def seconds() -> float:
        made_here = sqlite_path(uri) is not None or "answered" in outcome
        return wait + _OPEN_DEADLINE["tables" if made_here else "server"]

    while thread.is_alive() and time.monotonic() < began + seconds() and not cancelled():
        thread.join(_TICK)
    with taking:
        done: tuple[Any, Any] | None = outcome.get("done")
        if done is None:
            given_up.set()
    if done is not None:
        return done
    thread.join(OPEN_PATIENCE + 1.0)  # the current request ends, and its effect is undone
    if cancelled():
        raise Stopped(f"stopped while MLflow at {masked(uri)} was waited for.")
    error = outcome.get("error") or TimeoutError(f"no answer within {seconds():.0f} s")
    if isinstance(error, ConfigError):
        raise error
    raise TrackingError(
        f"tracking.uri: the MLflow store at {masked(uri)} cannot be used ({reason(error)}); "
        "start the server, correct tracking.uri or MLFLOW_TRACKING_URI, or set tracking.enabled=false."
    )


def _insist(action: Callable[[], Any], uri: str, wait: float, given_up: threading.Event) -> Any:
    """Repeat ``action`` while the server, which may still be starting, does not answer; returns its result."""
    limit, delay, told = time.monotonic() + wait, _FIRST_DELAY, False
    while True:
        try:
            return action()
        except Exception as error:
            why = reason(error)
            if why not in _NOT_YET or given_up.is_set() or time.monotonic() >= limit:
                raise
        if not told:
            log.warning("MLflow at %s does not answer yet (%s); waiting up to %.0f s for it.", masked(uri), why, wait)
            told = True
        given_up.wait(min(delay, max(0.0, limit - time.monotonic())))
        delay = min(2 * delay, _LONGEST_DELAY)


def _check(uri: str) -> None:
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("", "file"):
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
            raise TrackingError(
                f"tracking.uri: '{uri}' is a folder, which MLflow no longer takes; use sqlite:///PATH/mlflow.db or a server's http URL."
            )
    elif scheme not in _SCHEMES:
        raise TrackingError(
            f"tracking.uri: '{masked(uri)}' is no tracking URI; use sqlite:///PATH/mlflow.db, http://HOST:PORT or a database URL."
        )
    path = sqlite_path(uri)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock_of(path).open("ab"):
            pass
        start = path.open("rb").read(16) if path.exists() else b""
    except OSError as error:
        raise TrackingError(f"tracking.uri: the SQLite store {path} cannot be written ({error.strerror}); choose another place.") from None
    if start and start != b"SQLite format 3\0":
        raise TrackingError(f"tracking.uri: {path} is not an SQLite file; choose another place.")


def _is_database(uri: str) -> bool:
    return urlsplit(uri).scheme.partition("+")[0] in ("postgresql", "mysql", "mssql")


def _reach(uri: str) -> None:
    """Connect to a database once, so that a wrong address or password is known before MLflow repeats it for minutes."""
    from sqlalchemy import create_engine

    engine = create_engine(uri)
    try:
        with engine.connect():
            pass
    finally:
        engine.dispose()


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _make_tables(mlflow: Any, uri: str) -> None:
    """Make a new SQLite store under another name and rename it, so that an interrupted process leaves no unusable store."""
    path = sqlite_path(uri)
    if path is None or (path.exists() and path.stat().st_size):
        return
    with _lock_of(path).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists() and path.stat().st_size:  # made by another run meanwhile
            return
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            made = Path(folder) / path.name
            mlflow.MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
            os.replace(made, path)


_STARTING = "what stands before it answers for it"

#: Reasons that disappear once a server has started.
_NOT_YET = {
    *("connection refused", "no connection in time", "no answer in time", "the connection was cut", "no connection"),
    _STARTING,
}


def reason(error: BaseException) -> str:
    """Return in a few words why MLflow failed."""
    text = masked(" ".join(str(error).split()))
    for sign, words in (
        ("NameResolutionError", "the host name is not known"),
        ("Failed to resolve", "the host name is not known"),
        ("Connection refused", "connection refused"),
        ("ConnectTimeout", "no connection in time"),
        ("Read timed out", "no answer in time"),
        ("ReadTimeout", "no answer in time"),
        ("CERTIFICATE_VERIFY_FAILED", "its TLS certificate is not trusted"),
        ("error code 502", _STARTING),
        ("error code 503", _STARTING),
        ("error code 504", _STARTING),
        ("too many 502", _STARTING),
        ("too many 503", _STARTING),
        ("too many 504", _STARTING),
        ("error code 401", "user and password were refused, 401; see MLFLOW_TRACKING_USERNAME"),
        ("error code 403", "access was refused, 403"),
        ("error code 404", "there is no MLflow at that address, 404"),
        ("Connection aborted", "the connection was cut"),
        ("NewConnectionError", "no connection"),
        ("Max retries exceeded", "no connection"),
    ):
        if sign in text:
            return words
    if isinstance(error, ModuleNotFoundError):
        if error.name == "psycopg":  # what SQLAlchemy takes for postgresql://
            return "Python package 'psycopg' is missing; write postgresql+psycopg2:// for psycopg2, which `pip install fedray[postgresql]` brings"
        return f"Python package '{error.name}' is missing"
    return (text[:160] + "..." if len(text) > 160 else text).rstrip(". ") or type(error).__name__
