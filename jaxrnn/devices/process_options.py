"""The options that say which of several processes this one is."""

from __future__ import annotations

import dataclasses

from jaxrnn.errors import InputError
from jaxrnn.settings import setting


@dataclasses.dataclass(frozen=True)
class Processes:
    """The place of this process among the processes of one training.

    Raises:
      InputError: for some but not all of `coordinator`, `process_id` and `num_processes`, and for
        values out of range.
    """

    distributed: bool = False
    """Run as one of several processes; SLURM, Open MPI, Kubernetes or a Cloud TPU numbers them."""
    coordinator: str | None = None
    """HOST:PORT of process 0, if no cluster provides it; needs --process-id and --num-processes."""
    process_id: int | None = setting(None, per_process=True)
    """Number of this process, from 0."""
    num_processes: int | None = None
    """Number of processes."""
    connect_timeout: float = 60.0
    """Seconds that processes wait for each other at the start."""

    def __post_init__(self) -> None:
        if self.coordinator is None and self.process_id is None and self.num_processes is None:
            return
        if self.coordinator is None or self.process_id is None or self.num_processes is None:
            raise InputError(
                "`coordinator`, `process_id` and `num_processes` go together: give all or none"
            )
        if not 0 <= self.process_id < self.num_processes:
            raise InputError(
                f"process_id must be from 0 to {self.num_processes - 1}, below "
                f"`num_processes={self.num_processes}`, not {self.process_id}"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(
                f"coordinator must be HOST:PORT, as in host0:7000, not {self.coordinator!r}"
            )
