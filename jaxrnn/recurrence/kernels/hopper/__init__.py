"""A cell over time on a Hopper GPU (H100, H200), as persistent kernels in Pallas Mosaic GPU.

One launch runs all steps forward, one all steps backward. The recurrent weights stay in the shared
memory of the GPU's multiprocessors, each of which holds those of some units. The hidden state goes from
every multiprocessor to all others in every step, through memory that L2 caches.

README.md says in which order to read the modules, and has a diagram of a step.
"""

from jaxrnn.recurrence.kernels.hopper.layer import run, unsupported_reason

__all__ = ["run", "unsupported_reason"]
