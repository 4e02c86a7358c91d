// XLA handlers for CPUs that call the functions of kernels/cudnn/calls.h with host memory. With a stand-in for cuDNN
// that computes on the CPU (stand_in.cc), the tests can run everything except the handlers for GPUs (calls.cc).

#include <cstdlib>
#include <memory>
#include <vector>

#include "calls.h"
#include "queries.h"

namespace {

// Returns a handler that runs a call with workspaces in host memory.
template <class Call>
auto on_host(Call call) {
  return [call](auto... given) {
    std::vector<std::unique_ptr<char[]>> workspaces;
    const auto allocate = [&workspaces](size_t bytes) -> void* {
      return workspaces.emplace_back(new char[bytes]).get();
    };
    return call(cudnn::Execution{0, nullptr, allocate}, given...);
  };
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_cudnn_forward, on_host(cudnn::forward),
                              cudnn::bind_forward(xla::ffi::Ffi::Bind()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_cudnn_backward_data, on_host(cudnn::backward_data),
                              cudnn::bind_backward_data(xla::ffi::Ffi::Bind()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_cudnn_backward_weights, on_host(cudnn::backward_weights),
                              cudnn::bind_backward_weights(xla::ffi::Ffi::Bind()));
