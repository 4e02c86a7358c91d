"""A meeting of all processes of a training at one address, before JAX connects them.

If a peer never connects, JAX aborts the process with a long trace of its internals. So the processes
first meet here, over plain sockets: process 0 listens, the others call it, and every process that
cannot go on fails with one line that says what is wrong. The port is free again afterwards, for JAX.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress

from jaxrnn.errors import InputError

# Seconds that one read from a socket, or one attempt to connect, may take.
CALL_TIMEOUT = 5
# Seconds between two attempts to connect.
RETRY_EVERY = 0.2

_REMEDY = "start every process once, each with its own `process_id`"


def meet(host: str, port: int, process_id: int, num_processes: int, timeout: float) -> None:
    """Wait until all processes are there.

    Args:
      host: the host of process 0; process 0 itself listens on all its addresses.
      port: the port that process 0 listens on.
      process_id: the number of this process, from 0.
      num_processes: the number of processes.
      timeout: seconds to wait.

    Raises:
      InputError: if processes are missing after `timeout` seconds, two have the same number, they
        disagree about `num_processes`, or the address cannot be used.
    """
    if num_processes == 1:
        return
    try:
        if process_id == 0:
            _receive(port, num_processes, timeout)
        else:
            _call(host, port, process_id, num_processes, timeout)
    except OSError as error:
        verb = "listen on" if process_id == 0 else "connect to"
        raise InputError(
            f"cannot {verb} {host}:{port}: {error.strerror or error}; choose another `coordinator`"
        ) from None


def _receive(port: int, num_processes: int, timeout: float) -> None:
    """Take the calls of the other processes, then answer all of them; for process 0.

    The answer is "" if everyone is there, else what is wrong.
    """
    end = time.monotonic() + timeout
    calls: list[socket.socket] = []
    arrived: dict[int, str] = {0: "process 0"}
    wrong = ""
    # The address that the others call may be of either version of IP.
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(
        ("", port), family=family, backlog=num_processes, dualstack_ipv6=both
    ) as server:
        while len(arrived) < num_processes and not wrong:
            server.settimeout(max(end - time.monotonic(), 1e-3))
            try:
                call, (address, *_) = server.accept()
            except TimeoutError:
                missing = ", ".join(str(n) for n in range(num_processes) if n not in arrived)
                wrong = f"process {missing} of {num_processes} did not connect within {timeout:g} s"
                break
            try:
                call.settimeout(CALL_TIMEOUT)
                number, their_count = json.loads(_read_line(call))
            except (OSError, ValueError, TypeError):
                # Something other than a process of this training called.
                call.close()
                continue
            calls.append(call)
            if their_count != num_processes:
                wrong = (
                    f"`num_processes` is {their_count} in process {number} and {num_processes} in "
                    "process 0"
                )
            elif number in arrived:
                wrong = f"two processes have `process_id={number}`, one of them at {address}"
            arrived[number] = address
        for call in calls:
            with suppress(OSError):
                call.sendall(json.dumps(wrong).encode() + b"\n")
                # The caller closes the connection first, so that the port is free at once.
                _read_line(call)
            call.close()
    if wrong:
        raise InputError(f"{wrong}; {_REMEDY}")


def _call(host: str, port: int, process_id: int, num_processes: int, timeout: float) -> None:
    """Call process 0 until it answers; for the other processes."""
    end = time.monotonic() + timeout
    last = ""
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, CALL_TIMEOUT)) as call:
                # Process 0 answers at the latest when its own timeout ends, about now.
                call.settimeout(left + CALL_TIMEOUT)
                call.sendall(json.dumps([process_id, num_processes]).encode() + b"\n")
                answer = json.loads(_read_line(call))
        except socket.gaierror as error:
            raise InputError(
                f"the host of the coordinator {host}:{port} is unknown: {error.strerror}"
            ) from None
        except (OSError, ValueError) as error:
            # Process 0 is not up yet, or it ended in the middle of an answer.
            last = getattr(error, "strerror", None) or "no answer"
            time.sleep(RETRY_EVERY)
            continue
        if answer:
            raise InputError(f"{answer}; {_REMEDY}")
        return
    raise InputError(
        f"the coordinator {host}:{port} did not answer within {timeout:g} s"
        f"{f' ({last})' if last else ''}; is process 0 running there, and is the port open?"
    )


def _read_line(call: socket.socket) -> bytes:
    """Return what arrives until the end of a line, or until the other side hangs up."""
    read = b""
    while not read.endswith(b"\n") and (more := call.recv(1024)):
        read += more
    return read
