// cuDNN's recurrences as handlers of XLA for GPUs; calls.py calls them.

#include "calls.h"
#include "questions.h"

namespace {

namespace ffi = xla::ffi;

// The most that XLA takes for an alignment. Its memory has at least 256 bytes, which cuDNN wants.
constexpr size_t ALIGNMENT = 16;

// Returns a function that makes a call on the device and stream of the program, with its memory.
template <class Call>
auto on_gpu(Call call) {
  return [call](void* stream, ffi::ScratchAllocator scratch, int32_t device, auto... given) {
    const auto memory = [&scratch](size_t bytes) { return scratch.Allocate(bytes, ALIGNMENT).value_or(nullptr); };
    return call(cudnn::Place{device, stream, memory}, given...);
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
