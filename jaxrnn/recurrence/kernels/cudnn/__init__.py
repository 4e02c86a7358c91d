"""NVIDIA's own LSTM, GRU and plain RNN, called through XLA's foreign function interface.

README.md says in which order to read the files. They were written from these sources:

- cuDNN 9.28.1: cudnn_adv.h, cudnn_ops.h and cudnn_graph.h, for the functions, types and constants;
- PyTorch, commit 00fc08a: aten/src/ATen/native/cudnn/RNN.cpp, for the arguments that it passes;
- jaxlib 0.10.2 and 0.12: xla/ffi/api/ffi.h, for `PlatformStream`, `ScratchAllocator`, `DeviceOrdinal`;
- XLA: xla/ffi/ffi_api.cc, for the largest alignment that the scratch allocator accepts.
"""

from jaxrnn.recurrence.kernels.cudnn.layer import run, unsupported_reason

__all__ = ["run", "unsupported_reason"]
