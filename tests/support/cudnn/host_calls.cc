// The calls of kernels/cudnn as handlers of XLA for CPUs, with memory of the host. Together with a stand-in for cuDNN
// that computes on the host (stand_in.cc), they run all of the wrapper but its bindings for GPUs (calls.cc).

#include <cstdlib>
#include <memory>
#include <vector>

#include "calls.h"
#include "questions.h"

namespace {

// Returns a function that makes a call with workspaces of the host.
template <class Call>
auto on_host(Call call) {
  return [call](auto... given) {
    std::vector<std::unique_ptr<char[]>> workspaces;
    const auto memory = [&workspaces](size_t bytes) -> void* {
      return workspaces.emplace_back(new char[bytes]).get();
    };
    return call(cudnn::Place{0, nullptr, memory}, given...);
  };
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_cudnn_forward, on_host(cudnn::forward),
                              cudnn::bind_forward(xla::ffi::Ffi::Bind()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_cudnn_backward_data, on_host(cudnn::backward_data),
                              cudnn::bind_backward_data(xla::ffi::Ffi::Bind()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_cudnn_backward_weights, on_host(cudnn::backward_weights),
                              cudnn::bind_backward_weights(xla::ffi::Ffi::Bind()));
