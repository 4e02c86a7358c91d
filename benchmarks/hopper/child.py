"""A child process for work that may hang or die, which then costs one job and not the rest.

Parent and child write JSON, an object a line. The parent sends a job; the child answers with

    {"at": who, "doing": what, "seconds": n}    often; nothing more for n seconds is a hang
    {"lost": why}                               who is at it has failed, and broken the process
    {"done": result}                            the job's end

A contender that hangs or dies is left out, with the reason, and its job is done again without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

START = 120.0  # seconds until the first word about a job, a new child's imports included
TAIL, WIDTH = 40, 300  # lines of its last words that are kept, characters of each


class Lost(Exception):
    """The child is gone, or had to go: `at` names the contender that it was busy with."""

    def __init__(self, at: str, why: str, tail: list[str]) -> None:
        super().__init__(why)
        self.at, self.tail = at, tail


class Late(Exception):
    """The time for the job was up."""


class Children:
    """One child at a time, started when there is a job, started anew when the last one is gone."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command, self.child = list(command), None

    def result(self, job: dict[str, Any], without: Sequence[str], until: float) -> dict[str, Any]:
        """What comes of a job, under "lost" who was left out of it because of a hang or a death.

        Args:
          job: the child's, to which "without", the contenders to leave out from the start, is added.
          until: of `time.monotonic`.

        Returns:
          the child's result; {"failed": why} where it failed without any contender to blame or the
          time was up.
        """
        lost: dict[str, Any] = {}
        result: dict[str, Any] = {}
        while not result:
            used, self.child = self.child is not None, self.child or _Child(self.command)
            try:
                result = self.child.run(job | {"without": [*without, *lost]}, until)
            except Late:
                result = {"failed": "the time was up"}
            except Lost as loss:
                if loss.at and loss.at not in lost:
                    lost[loss.at] = {"why": str(loss), "tail": loss.tail}
                elif not used:  # a job before this one may have broken it
                    result = {"failed": str(loss), "tail": loss.tail}
            if not result or "failed" in result:
                self.stop()
        return result | {"lost": lost}

    def tail(self) -> list[str]:
        """The last lines that the child has printed."""
        return self.child.tail() if self.child else []

    def stop(self) -> None:
        """End the child, whatever it does."""
        if self.child:
            self.child.kill()
        self.child = None


class _Child:
    def __init__(self, command: list[str]) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the child
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,  # so that what it starts itself ends with it
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self, job: dict[str, Any], until: float) -> dict[str, Any]:
        at, doing, patience = "", "starting", START
        self.begin = os.fstat(self.log.fileno()).st_size
        with contextlib.suppress(OSError):  # a child that is gone already says so below
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        while True:
            left = until - time.monotonic()
            try:
                line = self.lines.get(timeout=max(0.0, min(patience, left)))
            except queue.Empty:
                if left < patience:
                    raise Late from None
                raise Lost(at, f"hung: {doing}, for {patience:g} s", self.tail()) from None
            if line is None:
                raise Lost(at, f"died: {doing} ({self._end()})", self.tail())
            said = json.loads(line)
            if "done" in said:
                return said["done"]
            if "lost" in said:
                raise Lost(at, f"failed: {doing} ({said['lost']})", self.tail())
            at, doing, patience = said["at"], said["doing"], said["seconds"]

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may take its time
            self.process.wait(20)
        for pipe in (self.process.stdin, self.log):
            with contextlib.suppress(OSError):
                pipe.close()

    def _listen(self) -> None:
        with self.process.stdout as lines:
            for line in lines:
                self.lines.put(line)
        self.lines.put(None)

    def _end(self) -> str:
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            return "its output ended"
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def tail(self) -> list[str]:
        size = os.fstat(self.log.fileno()).st_size
        begin = max(self.begin, size - TAIL * WIDTH)
        last = os.pread(self.log.fileno(), size - begin, begin)
        lines = last.decode(errors="replace").splitlines()
        return [line[:WIDTH] for line in lines if line.strip()][-TAIL:]


class Say:
    """What the child says. It takes standard output for that; what others print goes to the errors."""

    def __init__(self) -> None:
        self.channel = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def now(self, at: str, doing: str, seconds: float) -> None:
        self._write({"at": at, "doing": doing, "seconds": seconds})

    def done(self, result: dict[str, Any]) -> None:
        self._write({"done": result})

    def lost(self, why: str) -> NoReturn:
        self._write({"lost": why})
        os._exit(1)  # a broken device may not let go of an orderly end

    def _write(self, words: dict[str, Any]) -> None:
        self.channel.write(json.dumps(words) + "\n")
