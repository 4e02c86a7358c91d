"""C++ on a CPU: each core takes rows of the batch through all of time on its own. `vjp` has it."""

from jaxrnn.recurrence.kernels.native.vjp import run, unsupported_reason

__all__ = ["run", "unsupported_reason"]
