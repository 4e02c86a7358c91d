"""Several processes that train one model: how they connect and how they agree.

    start(Processes(coordinator="host0:7000", process_id=1, num_processes=4))
    corpus = run_on_all(lambda: read(...))    # if it fails in one process, it fails in all
    everyone = allgather_json(settings)       # one value per process, in the order of their numbers

With a single process, all functions here work without communication.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxrnn.devices import rendezvous
from jaxrnn.devices.process_options import Processes
from jaxrnn.errors import InputError, RemoteError

# Seconds without a sign of life after which a process counts as lost.
HEARTBEAT = 30

T = TypeVar("T")


def start(processes: Processes) -> None:
    """Connect this process with the others; `jax.devices()` then lists the devices of all.

    Call it before any other use of JAX. Without `distributed` and `coordinator` it does nothing.

    Raises:
      InputError: if no cluster provides the number of this process and it is not given, another
        process has the same number, or the others do not connect in time.
    """
    timeout = processes.connect_timeout
    if processes.coordinator is None and processes.distributed:
        processes = _from_cluster(timeout)
    if processes.coordinator is None:
        return
    host, _, port = processes.coordinator.rpartition(":")
    process_id = processes.process_id or 0
    num_processes = processes.num_processes or 1
    rendezvous.meet(host.strip("[]"), int(port), process_id, num_processes, timeout)
    with _translate_connection_errors():
        jax.distributed.initialize(
            coordinator_address=processes.coordinator,
            process_id=process_id,
            num_processes=num_processes,
            initialization_timeout=int(timeout),
            heartbeat_timeout_seconds=HEARTBEAT,
        )


def _from_cluster(timeout: float) -> Processes:
    """Return the place of this process according to its cluster, as JAX detects it."""
    # JAX's public function detects and connects in one step, without the rendezvous in between.
    from jax._src.clusters import ClusterEnv

    with _translate_connection_errors():
        address, num_processes, process_id, _ = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, [], None, int(timeout)
        )
        if address is None or num_processes is None or process_id is None:
            raise RuntimeError("no cluster provides the number of this process")
    return Processes(True, address, process_id, num_processes, timeout)


@contextmanager
def _translate_connection_errors() -> Iterator[None]:
    """Turn what JAX raises while it connects into an InputError of one line."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise InputError(
            f"the processes could not be connected: {why}; outside of SLURM, Open MPI, Kubernetes "
            "and Cloud TPU give `coordinator` HOST:PORT, `process_id` and `num_processes`"
        ) from None


def is_primary() -> bool:
    """Return whether this is process 0, which writes files and output for all."""
    return jax.process_index() == 0


def allgather_json(value: Any) -> list[Any]:
    """Return the values of all processes, in the order of their numbers. All must call it.

    Args:
      value: anything that `json` can write; the results are what `json` reads back.
    """
    if jax.process_count() == 1:
        return [value]
    raw = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(raw.size)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: raw.size] = raw
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def is_peer_failure(error: BaseException) -> bool:
    """Return whether an error of JAX means that another process is gone."""
    # JAX has many messages for this and no class of its own.
    words = "Gloo", "barrier", "Barrier", "coordination", "DEADLINE_EXCEEDED", "UNAVAILABLE"
    return jax.process_count() > 1 and any(word in str(error) for word in words)


def run_on_all(action: Callable[[], T]) -> T:
    """Run an action in every process; if it fails in one, it fails in all. All must call it.

    Returns:
      The result of this process's own action.

    Raises:
      InputError: in the first process whose action failed, the error of that action.
      OSError: likewise.
      RemoteError: in all other processes.
    """
    if jax.process_count() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except (InputError, OSError) as own:
        error = own
    messages = allgather_json(None if error is None else str(error))
    failed = [number for number, message in enumerate(messages) if message is not None]
    if not failed:
        return result  # type: ignore[return-value]
    if error is not None and failed[0] == jax.process_index():
        raise error
    raise RemoteError(f"process {failed[0]}: {messages[failed[0]]}")


def require_equal(values: dict[str, Any], hint: str) -> None:
    """Raise an error in every process if the processes have different values. All must call it.

    Args:
      values: values by name; anything that `json` can write.
      hint: what the user can do about a difference, for the message.

    Raises:
      InputError: in process 0.
      RemoteError: in the other processes.
    """
    everyone = allgather_json(values)
    first = everyone[0]
    for number, other in enumerate(everyone):
        differences = "; ".join(
            f"{name} is {first.get(name)} in process 0 and {other.get(name)} in process {number}"
            for name in sorted(values)
            if other.get(name) != first.get(name)
        )
        if differences:
            kind = InputError if is_primary() else RemoteError
            raise kind(f"the processes differ: {differences}; {hint}")
