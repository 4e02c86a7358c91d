// Functions that Python calls while it traces a program. Those that can fail return a one-line error message, which
// is empty on success.

#pragma once

#include <string>

#include "recurrence.h"

namespace cudnn {

// The counterpart of the Python class of the same name in library.py.
struct DescriptorArguments {
  int64_t mode, type, algorithm, tf32, layers, both_directions, steps, batch, features, hidden, training;

  Problem problem() const {
    const auto size = [](int64_t n) { return static_cast<int>(n); };
    return {static_cast<Mode>(mode), static_cast<DataType>(type), static_cast<Algorithm>(algorithm), tf32 != 0,
            size(layers), both_directions ? BIDIRECTIONAL : UNIDIRECTIONAL, size(steps), size(batch), size(features),
            size(hidden)};
  }
};

// Runs a function and returns the message of the exception that it throws, if any.
template <class Query>
const char* error_text(const Query& query) {
  thread_local std::string text;
  text.clear();
  try {
    query();
  } catch (const std::exception& error) {
    text = error.what();
  }
  return text.c_str();
}

}  // namespace cudnn

extern "C" {

// Loads cuDNN, and creates a context to check that it works on this machine.
const char* jaxrnn_cudnn_open(const char* path) {
  return cudnn::error_text([&] {
    cudnn::library().open(path);
    const cudnn::BorrowedContext context(-1, nullptr);
  });
}

int64_t jaxrnn_cudnn_version() { return static_cast<int64_t>(cudnn::functions().cudnnGetVersion()); }

// Writes the bytes of the weights, the workspace and the reserve to `sizes`.
const char* jaxrnn_cudnn_sizes(const cudnn::DescriptorArguments* arguments, int64_t* sizes) {
  return cudnn::error_text([&] {
    const cudnn::BorrowedContext context(-1, nullptr);
    const cudnn::Passes passes(context, arguments->problem());
    const cudnn::Sizes found = passes.sizes(arguments->training ? cudnn::TRAINING : cudnn::INFERENCE);
    sizes[0] = static_cast<int64_t>(found.weights);
    sizes[1] = static_cast<int64_t>(found.workspace);
    sizes[2] = static_cast<int64_t>(found.reserve);
  });
}

// Writes the two offsets that `Passes::offsets` returns to `offsets`.
const char* jaxrnn_cudnn_offsets(const cudnn::DescriptorArguments* arguments, int64_t pseudo_layer, int64_t product,
                                 int64_t* offsets) {
  return cudnn::error_text([&] {
    const cudnn::BorrowedContext context(-1, nullptr);
    const cudnn::Passes passes(context, arguments->problem());
    const auto found = passes.offsets(static_cast<int>(pseudo_layer), static_cast<int>(product),
                                      passes.sizes(cudnn::TRAINING).weights);
    offsets[0] = found.first;
    offsets[1] = found.second;
  });
}

}  // extern "C"
