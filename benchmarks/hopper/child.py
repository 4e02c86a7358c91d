"""A child process for work that may hang or crash, so that only one job is lost.

Parent and child exchange JSON, one object per line. The parent sends a job; the child answers with

    {"at": contender, "doing": what, "seconds": n}    often; silence for n seconds after it is a hang
    {"lost": why}                                     this contender failed and broke the process
    {"done": result}                                  the job is done

A contender that hangs or crashes is left out, with the reason, and its job is repeated without it.
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

from benchmarks import measure

# Seconds until the first message about a job, including the imports of a new child.
START = 120.0
# Last lines of a child's output that are kept, and characters of each.
TAIL, WIDTH = 40, 300


class Lost(Exception):
    """The child ended or had to be ended; `at` names the contender that it was running."""

    def __init__(self, at: str, why: str, tail: list[str]) -> None:
        super().__init__(why)
        self.at, self.tail = at, tail


class Late(Exception):
    """The time for the job ran out."""


class Children:
    """One child at a time, started for the first job and restarted when it has ended."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command, self.child = list(command), None

    def result(self, job: dict[str, Any], without: Sequence[str], until: float) -> dict[str, Any]:
        """Run a job and return its result.

        Args:
          job: the job.
          without: contenders to leave out from the start; the child gets them as "without".
          until: the time of `time.monotonic` at which the job must be done.

        Returns:
          the child's result, or {"failed": why} if it failed without a contender to blame or the time
          ran out; and under "lost" the contenders that hung or crashed, which were left out.
        """
        lost: dict[str, Any] = {}
        result: dict[str, Any] = {}
        while not result:
            used, self.child = self.child is not None, self.child or _Child(self.command)
            try:
                result = self.child.run(job | {"without": [*without, *lost]}, until)
            except Late:
                result = {"failed": "the time ran out"}
            except Lost as loss:
                if loss.at and loss.at not in lost:
                    lost[loss.at] = {"why": str(loss), "tail": loss.tail}
                elif not used:
                    # Otherwise an earlier job may have broken the child, and this one is repeated.
                    result = {"failed": str(loss), "tail": loss.tail}
            if not result or "failed" in result:
                self.stop()
        return result | {"lost": lost}

    def tail(self) -> list[str]:
        """Return the last lines that the child printed."""
        return self.child.tail() if self.child else []

    def stop(self) -> None:
        """End the child, whatever it is doing."""
        if self.child:
            self.child.kill()
        self.child = None


class _Child:
    def __init__(self, command: list[str]) -> None:
        # It lives as long as the child.
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            env=measure.child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            # So that processes that the child starts end with it.
            start_new_session=True,
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self, job: dict[str, Any], until: float) -> dict[str, Any]:
        at, doing, patience = "", "starting", START
        self.begin = os.fstat(self.log.fileno()).st_size
        # If the child has ended already, this is noticed below.
        with contextlib.suppress(OSError):
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
                raise Lost(at, f"crashed: {doing} ({self._end()})", self.tail())
            message = json.loads(line)
            if "done" in message:
                return message["done"]
            if "lost" in message:
                raise Lost(at, f"failed: {doing} ({message['lost']})", self.tail())
            at, doing, patience = message["at"], message["doing"], message["seconds"]

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        # The GPU driver may need some time to end it.
        with contextlib.suppress(subprocess.TimeoutExpired):
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


class Reporter:
    """The child's messages to its parent.

    They use standard output; everything else that the process prints goes to standard error.
    """

    def __init__(self) -> None:
        self.channel = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def now(self, at: str, doing: str, seconds: float) -> None:
        """Say which contender runs now, and after how many seconds of silence it counts as hung."""
        self._write({"at": at, "doing": doing, "seconds": seconds})

    def done(self, result: dict[str, Any]) -> None:
        """Send the result of the job."""
        self._write({"done": result})

    def lost(self, why: str) -> NoReturn:
        """Say that the contender that runs now has failed, and end the process."""
        self._write({"lost": why})
        # With a broken device an orderly exit may hang.
        os._exit(1)

    def _write(self, message: dict[str, Any]) -> None:
        self.channel.write(json.dumps(message) + "\n")
