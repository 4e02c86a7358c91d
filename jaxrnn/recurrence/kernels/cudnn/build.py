"""The C++ of this folder, compiled at first use, for which neither cuDNN nor CUDA is needed."""

from pathlib import Path

from jaxrnn.recurrence.kernels.cplusplus import Library

LIBRARY = Library(
    name="cudnn",
    source=Path(__file__).with_name("calls.cc"),
    handlers=tuple(
        f"jaxrnn_cudnn_{name}" for name in ("forward", "backward_data", "backward_weights")
    ),
    platform="CUDA",
    systems=("Linux",),
)
