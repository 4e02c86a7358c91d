"""Many processes, one training: how they find one another, and how they come to agree.

    start(Processes(coordinator="host0:7000", process_id=1, num_processes=4))
    corpus = run_on_all(lambda: read(...))           # what is wrong for one is wrong for all
    settings = allgather_json(settings)                    # of every process, in the order of their numbers

Everything here is the identity where there is one process. JAX ends a process on the spot, with a page
of its internals, where another does not come up; so they first meet by themselves at the address that
they are told, or that the cluster says (`_meet`), where there is time to say what is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxrnn.errors import InputError
from jaxrnn.settings import setting

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as lost

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Processes:
    """Which of several processes this is."""

    distributed: bool = False
    """One of several processes; SLURM, Open MPI, Kubernetes or a Cloud TPU says which."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where nothing else says it; with the next two."""
    process_id: int | None = setting(None, per_process=True)
    """The number of this process, from 0."""
    num_processes: int | None = None
    """How many processes there are."""
    connect_timeout: float = 60.0
    """Seconds that processes wait for one another at the start."""

    def __post_init__(self) -> None:
        told = self.coordinator, self.process_id, self.num_processes
        if told == (None, None, None):
            return
        if self.coordinator is None or self.process_id is None or self.num_processes is None:
            raise InputError(
                "--coordinator, --process-id and --num-processes go together: give all or none"
            )
        if not 0 <= self.process_id < self.num_processes:
            raise InputError(
                f"--process-id must be from 0 to {self.num_processes - 1}, below --num-processes "
                f"{self.num_processes}, not {self.process_id}"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(
                f"--coordinator must be HOST:PORT, as in host0:7000, not {self.coordinator!r}"
            )


def start(processes: Processes) -> None:
    """Make this process one of several; `jax.devices()` are then those of all. Call it first of all.

    Raises:
      InputError: where no cluster says which process this is and nobody else does, a number is asked
        for by another process too, or the others do not come in time.
    """
    patience = processes.connect_timeout
    if processes.coordinator is None and processes.distributed:
        processes = _found(patience)
    if processes.coordinator is None:
        return
    host, _, port = processes.coordinator.rpartition(":")
    number, count = processes.process_id or 0, processes.num_processes or 1
    _meet(host.strip("[]"), int(port), number, count, patience)
    with _unconnected():
        jax.distributed.initialize(
            coordinator_address=processes.coordinator,
            process_id=number,
            num_processes=count,
            initialization_timeout=int(patience),
            heartbeat_timeout_seconds=HEARTBEAT,
        )


def _found(patience: float) -> Processes:
    """What the cluster that this runs in says, as JAX reads it."""
    from jax._src.clusters import ClusterEnv  # what is public connects at once

    with _unconnected():
        address, count, number, _ = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, [], None, int(patience)
        )
        if address is None or count is None or number is None:
            raise RuntimeError("no cluster says which process this is")
    return Processes(True, address, number, count, patience)


@contextmanager
def _unconnected() -> Iterator[None]:
    """What JAX refuses, in one line for users."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise InputError(
            f"the processes could not be connected: {why}; outside of SLURM, Open MPI, Kubernetes "
            "and Cloud TPU give --coordinator HOST:PORT, --process-id and --num-processes"
        ) from None


def is_primary() -> bool:
    """Whether this is the process that speaks and writes for all."""
    return jax.process_index() == 0


def allgather_json(value: Any) -> list[Any]:
    """Everybody's value, by the numbers of the processes. All must call it. The value is JSON."""
    if jax.process_count() == 1:
        return [value]
    raw = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(raw.size)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: raw.size] = raw
    all_of_them = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(all_of_them, sizes, strict=True)]


def is_peer_failure(error: BaseException) -> bool:
    """Whether this is how JAX says that another process is gone; it says so in many ways."""
    words = "Gloo", "barrier", "Barrier", "coordination", "DEADLINE_EXCEEDED", "UNAVAILABLE"
    return jax.process_count() > 1 and any(word in str(error) for word in words)


class RemoteError(InputError):
    """An error of another process, which has told it already."""


def run_on_all(action: Callable[[], T]) -> T:
    """Do this in every process; where one fails, all do. All must call it.

    Raises:
      InputError: here, for its own; in the others `RemoteError`.
    """
    if jax.process_count() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except (InputError, OSError) as own:
        error = own
    told = allgather_json(None if error is None else str(error))
    failed = [number for number, line in enumerate(told) if line is not None]
    if not failed:
        return result  # type: ignore[return-value]
    if error is not None and failed[0] == jax.process_index():
        raise error
    raise RemoteError(f"process {failed[0]}: {told[failed[0]]}")


def require_equal(what: dict[str, Any], hint: str) -> None:
    """Raises InputError, the same in every process, where one has other values than process 0.

    Args:
      what: by name; JSON.
      hint: what to do about it.
    """
    everybody = allgather_json(what)
    for number, theirs in enumerate(everybody):
        differing = [n for n in sorted(what) if theirs.get(n) != everybody[0].get(n)]
        if differing:
            told = "; ".join(
                f"{n} is {everybody[0].get(n)} in process 0 and {theirs.get(n)} in process {number}"
                for n in differing
            )
            kind = InputError if is_primary() else RemoteError
            raise kind(f"the processes differ: {told}; {hint}")


# --- meeting at an address ---


def _meet(host: str, port: int, process: int, count: int, patience: float) -> None:
    """Wait until `count` processes are there; process 0 listens, the others call."""
    if count == 1:
        return
    end = time.monotonic() + patience
    try:
        if process == 0:
            _receive(port, count, end, patience)
        else:
            _call(host, port, process, count, end, patience)
    except OSError as error:
        raise InputError(
            f"cannot {'listen' if process == 0 else 'call'} at {host}:{port}: "
            f"{error.strerror or error}; choose another --coordinator"
        ) from None


def _receive(port: int, count: int, end: float, patience: float) -> None:
    """Process 0: take the others' calls, then answer them all, with "" or with what is wrong."""
    calls: list[socket.socket] = []
    there: dict[int, str] = {0: "process 0"}
    wrong = ""
    both = socket.has_dualstack_ipv6()  # an address of the cluster's may be of either kind
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(
        ("", port), family=family, backlog=count, dualstack_ipv6=both
    ) as server:
        while len(there) < count and not wrong:
            server.settimeout(max(end - time.monotonic(), 1e-3))
            try:
                call, (address, *_) = server.accept()
            except TimeoutError:
                missing = ", ".join(str(n) for n in range(count) if n not in there)
                wrong = f"process {missing} of {count} did not come within {patience:g} s"
                break
            try:
                call.settimeout(5)
                number, theirs = json.loads(_line(call))
            except (OSError, ValueError, TypeError):  # no process of ours
                call.close()
                continue
            calls.append(call)
            if theirs != count:
                wrong = f"process {number} is told of {theirs} processes and process 0 of {count}"
            elif number in there:
                wrong = f"two processes have --process-id {number}, one of them at {address}"
            there[number] = address
        for call in calls:
            with suppress(OSError):
                call.sendall(json.dumps(wrong).encode() + b"\n")
                _line(call)  # they hang up first, so that the port is free at once
            call.close()
    if wrong:
        raise InputError(f"{wrong}; start every process once, each with a number of its own")


def _call(host: str, port: int, process: int, count: int, end: float, patience: float) -> None:
    """Another process: call process 0 until it answers."""
    last = ""
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, 5)) as call:
                call.settimeout(left + 5)  # process 0's own patience ends about then
                call.sendall(json.dumps([process, count]).encode() + b"\n")
                answer = json.loads(_line(call))
        except socket.gaierror as error:
            raise InputError(
                f"the host of the coordinator {host}:{port} is unknown: {error.strerror}"
            ) from None
        except (OSError, ValueError) as error:  # not up yet, or gone in the middle
            last = getattr(error, "strerror", None) or "no answer"
            time.sleep(0.2)
            continue
        if answer:
            raise InputError(f"{answer}; start every process once, each with a number of its own")
        return
    raise InputError(
        f"the coordinator {host}:{port} did not answer within {patience:g} s"
        f"{f' ({last})' if last else ''}; is process 0 running there, and is the port open?"
    )


def _line(call: socket.socket) -> bytes:
    """What comes until the end of a line, or until the other hangs up."""
    read = b""
    while not read.endswith(b"\n") and (more := call.recv(1024)):
        read += more
    return read
