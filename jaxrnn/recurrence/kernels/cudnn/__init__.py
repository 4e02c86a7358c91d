"""NVIDIA's own LSTM, GRU and plain RNN, by way of XLA's foreign function interface.

What was looked up, and where: the functions, types and constants in cudnn_adv.h, cudnn_ops.h and
cudnn_graph.h of cuDNN 9.28.1; which arguments PyTorch passes, in aten/src/ATen/native/cudnn/RNN.cpp of
its commit 00fc08a and in aten/src/ATen/cudnn/Descriptors.h; `PlatformStream`, `ScratchAllocator` and
`DeviceOrdinal` in xla/ffi/api/ffi.h of jaxlib 0.10.2 and 0.12, and the most that XLA takes for an
alignment in its xla/ffi/ffi_api.cc. README.md has the order in which to read the files.
"""

from jaxrnn.recurrence.kernels.cudnn.layer import DERIVATIVES, run, unsupported_reason

__all__ = ["DERIVATIVES", "run", "unsupported_reason"]
