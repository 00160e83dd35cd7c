"""The log of a run: one JSONL file, one line an event, linear in what happened.

A long value (prompts, replies, outputs) is written once, as a line ``{"type": "value", "hash": "sha256:…", "value": "…"}``, and named by
``{"$value": "sha256:…"}`` wherever it stands. Messages are logged as they are added, so no prompt is written twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from .errors import ConfigError
from .events import AnyEvent, CellOutput, Emit
from .lifetimes import finish
from .shortages import told
from .types import JSON

LONG_CHARS = 200  # a longer str is written once by hash; the reference costs about 85 characters
FLUSH_SECONDS = 0.2  # events are written in batches at most this old

OURS = re.compile(r"\$+value")

logger = logging.getLogger("arlm.log")


@asynccontextmanager
async def open_log(folder: str | Path, run_id: str) -> AsyncIterator[Emit]:
    """Write a run's events into a new file of ``folder``; yields what takes them.

    Taking an event never waits for the disk: a thread writes. What was taken is on disk when the context is left, also when it is
    cancelled. A disk that fails is reported once and ends the log, not the run.

    Raises:
        ConfigError: the folder cannot be made or written to.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    path = Path(folder) / f"{stamp}_{run_id}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("x", encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigError(f"log_dir: {path} cannot be written: {told(error, setting='log_dir')}") from error
    log = _Log(file)
    writer = asyncio.ensure_future(log.write_until_stopped())

    async def close() -> None:
        log.stop()
        try:
            await writer
        finally:
            log.close()  # what is left, also when somebody cancelled the writer

    try:
        yield log.take
    finally:
        await finish(close, what=f"the log {path}")


class _Log:
    def __init__(self, file: TextIO) -> None:
        self._file: TextIO | None = file
        self._waiting: list[AnyEvent] = []
        self._written: set[str] = set()
        self._stopped = asyncio.Event()
        self._writing = threading.Lock()  # between the writing thread and the last words

    def take(self, event: AnyEvent) -> None:
        if not isinstance(event, CellOutput):
            self._waiting.append(event)

    def stop(self) -> None:
        self._stopped.set()

    async def write_until_stopped(self) -> None:
        stopped = False
        while not stopped:
            stopped = await self._pause()
            events, self._waiting = self._waiting, []
            await asyncio.to_thread(self._write, events)

    def close(self) -> None:
        events, self._waiting = self._waiting, []
        self._write(events)
        with self._writing:
            if self._file is not None:
                self._file.close()
                self._file = None

    async def _pause(self) -> bool:
        """Wait a little; True when this is the last time."""
        try:
            await asyncio.wait_for(self._stopped.wait(), FLUSH_SECONDS)
        except TimeoutError:
            return False
        return True

    def _write(self, events: list[AnyEvent]) -> None:
        with self._writing:
            file = self._file
            if file is None or not events:
                return
            try:
                for event in events:
                    values: list[str] = []
                    line = _dumps(_by_hash(event.to_dict(), self._written, values))
                    file.write("".join(f"{value}\n" for value in values) + line + "\n")
                file.flush()
            except OSError as error:
                self._file = None
                logger.error("the log %s ends here, and the run goes on without it: %s", file.name, told(error, setting="log_dir"))
                with suppress(OSError):
                    file.close()


def _by_hash(value: JSON, written: set[str], values: list[str]) -> JSON:
    match value:
        case str() if len(value) > LONG_CHARS:
            name = "sha256:" + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
            if name not in written:
                written.add(name)
                values.append(_dumps({"type": "value", "hash": name, "value": value}))
            return {"$value": name}
        case dict():
            return {_escaped(key): _by_hash(item, written, values) for key, item in value.items()}
        case list():
            return [_by_hash(item, written, values) for item in value]
        case _:
            return value


def _escaped(key: str) -> str:
    """A key of somebody's data that looks like ours gets one more ``$``, which reading takes away."""
    return f"${key}" if OURS.fullmatch(key) else key


def _dumps(value: JSON) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if text.isascii() or not _has_surrogates(text) else json.dumps(value, separators=(",", ":"))


def _has_surrogates(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def read_log(path: str | Path) -> Iterator[dict[str, Any]]:
    """The events of a log, oldest first, with long values put back in place.

    A torn last line (the process was killed while writing) is left out.

    Raises:
        ValueError: another line is not JSON, or names a value that is not there; the message says which.
    """
    values: dict[str, str] = {}
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                if record.get("type") == "value":
                    values[record["hash"]] = record["value"]
                else:
                    yield _put_back(record, values)
            except (ValueError, KeyError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: not a line of a run log ({error})") from error


def _put_back(value: Any, values: dict[str, str]) -> Any:
    match value:
        case {"$value": name} if len(value) == 1:
            return values[name]
        case dict():
            return {key[1:] if OURS.fullmatch(key) else key: _put_back(item, values) for key, item in value.items()}
        case list():
            return [_put_back(item, values) for item in value]
        case _:
            return value
