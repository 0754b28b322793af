"""Files are validated: small plain ones in the request that brought them, the others one after the other by a thread and its child process.

The rows are the queue. What was interrupted is `uploaded` still, and is taken up when a process starts or looks again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync

from ft_pipeline.acquire.uploaded import HEAD_BYTES, row_suffix
from ft_pipeline.errors import DataError, FtError
from ft_pipeline.settings import job_environment
from ft_pipeline.store.blobs import Blobs
from ft_pipeline.store.paths import part_path, validation_lock
from ft_pipeline.store.platform.files import FileRow
from ft_pipeline.web.arrivals import sweep
from ft_pipeline.web.intake import missing_bytes
from ft_pipeline.web.platform import Platform
from ft_pipeline.web.report import harmless, refusal_in, report_of

AT_ONCE_BYTES = 4 << 20
"""A plain file of so much is validated while its sender waits: about half a second."""
LOOK_SECONDS = 30.0
MOST_SECONDS = 3600
log = logging.getLogger(__name__)


class Validator:
    """Validates the files of a platform, in this process or a child of it."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._blobs = Blobs(platform.store)
        self._due, self._stop = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def take(self, file: FileRow) -> FileRow:
        """The file after its validation when that is quick, else as it is, and its turn comes."""
        head = self._blobs.head(file.blob_sha256, HEAD_BYTES)
        if file.bytes <= AT_ONCE_BYTES and head and row_suffix(head) in (".jsonl", ".json"):
            self.validate(file, in_child=False)
            return self._platform.records.file(file.id, tenant=file.tenant)
        self.start()
        self._due.set()
        return file

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Works in the background while the application runs."""
        self.start()
        yield
        await run_sync(self.stop)

    def start(self) -> None:
        """Begins to work in the background, if it did not."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._stop.clear()
                self._thread = threading.Thread(target=self._run, name="validation", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Ends the background work; what is under way is begun again by the next process."""
        self._stop.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def validate(self, file: FileRow, *, in_child: bool = True) -> bool:
        """Writes down what is in a file. False when another process is at it, or it was deleted meanwhile."""
        records = self._platform.records
        with _alone(validation_lock(self._platform.settings.work, file.id)) as mine:
            if not mine:
                return False
            try:
                report = self.report(file, in_child=in_child)
            except FtError as error:
                return records.validated(file.id, "error", report=None, details=harmless(str(error))[:1000])
            refused = refusal_in(report)
            status = "error" if refused else "processed"
            return records.validated(file.id, status, report=report, details=refused)

    def report(
        self, file: FileRow, *, in_child: bool = True, tokenizer: tuple[str, Path] | None = None
    ) -> dict[str, Any]:
        """The report of a file; `tokenizer`: name and path of one that counts. Raises DataError, StorageError."""
        with contextlib.ExitStack() as stack:
            try:
                path = stack.enter_context(self._blobs.local(file.blob_sha256))
                with path.open("rb") as opened:
                    suffix = row_suffix(opened.read(HEAD_BYTES))
            except FileNotFoundError:
                raise missing_bytes(file) from None
            if suffix is None:
                raise missing_bytes(file)
            if not in_child:
                return report_of(path, suffix)
            asked: dict[str, Any] = {"path": str(path), "suffix": suffix, "parent": os.getpid()}
            if tokenizer:
                asked |= {"tokenizer_name": tokenizer[0], "tokenizer": str(tokenizer[1])}
            return self._child(asked)

    def _child(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        command = [sys.executable, "-m", "ft_pipeline.web.report", json.dumps(asked)]
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=job_environment(self._platform.settings), text=True,
        )  # fmt: skip
        try:
            said, wrong = _output(child, self._stop)
        except subprocess.TimeoutExpired:
            raise DataError(
                f"its validation took more than {MOST_SECONDS} s", cure="bring it in several files"
            ) from None
        finally:
            child.kill()
            child.wait()
        if child.returncode:
            log.warning("validation ended with %s: %s", child.returncode, wrong[-2000:])
            raise DataError(
                f"the program that read it ended with {child.returncode}",
                why="A file that ends its reader is damaged, or made to do so.",
                cure="write it again with another library, as JSON lines if it is Parquet",
            )
        told = json.loads(said)
        if "error" in told:
            raise DataError(told["error"])
        return told

    def _run(self) -> None:
        while not self._stop.is_set():
            self._due.clear()
            try:
                tidy(self._platform)
                for file in self._platform.records.unvalidated_files():
                    if self._stop.is_set():
                        return
                    self.validate(file)
            except (FtError, OSError, Stopped) as error:
                # the database or the store does not answer: the rows wait, and so do we
                log.warning("validation waits: %s", error)
            self._due.wait(LOOK_SECONDS)


class Stopped(Exception):
    """This process ends; the file waits for the next one."""


def tidy(platform: Platform) -> int:
    """Deletes what died on its way in, and parts of uploads that have ended. Says how much of it there was."""
    gone = sweep(platform.settings.work)
    for upload_id in platform.records.ended_uploads():
        forget_parts(platform, upload_id)
        gone += 1
    return gone


def forget_parts(platform: Platform, upload_id: str) -> None:
    """Deletes the parts of an upload that has ended."""
    folder = part_path(upload_id, "").rstrip("/")
    platform.records.forget_parts(upload_id, lambda: platform.store.bucket.remove(folder))


def _output(child: subprocess.Popen[str], stop: threading.Event) -> tuple[str, str]:
    for _ in range(MOST_SECONDS):
        try:
            return child.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            if stop.is_set():
                raise Stopped from None
    raise subprocess.TimeoutExpired(child.args, MOST_SECONDS)


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """True for the one process and thread of this machine that validates a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
        path.unlink(missing_ok=True)
