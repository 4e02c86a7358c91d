"""The C++ library of this folder. It is compiled at first use, without cuDNN or a CUDA toolkit."""

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
