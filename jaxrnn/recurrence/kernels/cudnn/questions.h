// What Python asks about cuDNN while it traces a program. Each function returns an empty text, or in one line what
// went wrong.

#pragma once

#include <string>

#include "recurrence.h"

namespace cudnn {

// A recurrence as numbers, in the order in which Python has them.
struct Numbers {
  int64_t mode, type, algorithm, tf32, layers, both_directions, steps, batch, features, hidden, training;

  Problem problem() const {
    const auto size = [](int64_t n) { return static_cast<int>(n); };
    return {static_cast<Mode>(mode), static_cast<DataType>(type), static_cast<Algorithm>(algorithm), tf32 != 0,
            size(layers), both_directions ? BIDIRECTIONAL : UNIDIRECTIONAL, size(steps), size(batch), size(features),
            size(hidden)};
  }
};

template <class Question>
const char* answer(const Question& question) {
  thread_local std::string wrong;
  wrong.clear();
  try {
    question();
  } catch (const std::exception& problem) {
    wrong = problem.what();
  }
  return wrong.c_str();
}

}  // namespace cudnn

extern "C" {

// Opens cuDNN, and makes a context to see that it runs here.
const char* jaxrnn_cudnn_open(const char* path) {
  return cudnn::answer([&] {
    cudnn::library().open(path);
    const cudnn::Loan context(-1, nullptr);
  });
}

int64_t jaxrnn_cudnn_version() { return static_cast<int64_t>(cudnn::functions().cudnnGetVersion()); }

// Sets the bytes of the weights, the workspace and the reserve.
const char* jaxrnn_cudnn_sizes(const cudnn::Numbers* numbers, int64_t* sizes) {
  return cudnn::answer([&] {
    const cudnn::Loan context(-1, nullptr);
    const cudnn::Passes passes(context, numbers->problem());
    const cudnn::Sizes found = passes.sizes(numbers->training ? cudnn::TRAINING : cudnn::INFERENCE);
    sizes[0] = static_cast<int64_t>(found.weights);
    sizes[1] = static_cast<int64_t>(found.workspace);
    sizes[2] = static_cast<int64_t>(found.reserve);
  });
}

// Sets the offsets in bytes of a matrix and a bias in the weights; see `Passes::offsets`.
const char* jaxrnn_cudnn_offsets(const cudnn::Numbers* numbers, int64_t part, int64_t product, int64_t* offsets) {
  return cudnn::answer([&] {
    const cudnn::Loan context(-1, nullptr);
    const cudnn::Passes passes(context, numbers->problem());
    const auto found = passes.offsets(static_cast<int>(part), static_cast<int>(product),
                                      passes.sizes(cudnn::TRAINING).weights);
    offsets[0] = found.first;
    offsets[1] = found.second;
  });
}

}  // extern "C"
