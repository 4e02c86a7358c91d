// The XLA handlers for GPUs, which calls.py calls.

#include "calls.h"
#include "queries.h"

namespace {

namespace ffi = xla::ffi;

// The largest alignment that XLA's scratch allocator accepts. Its GPU memory is in fact aligned to 256 bytes.
constexpr size_t ALIGNMENT = 16;

// Returns a handler that runs a call on the device and stream of the program, with a workspace from XLA.
template <class Call>
auto on_gpu(Call call) {
  return [call](void* stream, ffi::ScratchAllocator scratch, int32_t device, auto... given) {
    const auto allocate = [&scratch](size_t bytes) { return scratch.Allocate(bytes, ALIGNMENT).value_or(nullptr); };
    return call(cudnn::Execution{device, stream, allocate}, given...);
  };
}

auto gpu() {
  return ffi::Ffi::Bind().Ctx<ffi::PlatformStream<void*>>().Ctx<ffi::ScratchAllocator>().Ctx<ffi::DeviceOrdinal>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_cudnn_forward, on_gpu(cudnn::forward), cudnn::bind_forward(gpu()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_cudnn_backward_data, on_gpu(cudnn::backward_data),
                              cudnn::bind_backward_data(gpu()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_cudnn_backward_weights, on_gpu(cudnn::backward_weights),
                              cudnn::bind_backward_weights(gpu()));
