// A cuDNN recurrence: its descriptors, the memory that it needs, and its three passes.

#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "library.h"

namespace cudnn {

// Everything that the descriptors depend on.
struct Problem {
  Mode mode;
  DataType type;
  Algorithm algorithm;
  // Whether float32 products may round their operands to TF32.
  bool tf32;
  int layers;
  Direction direction;
  int steps, batch, features, hidden;

  int directions() const { return direction == BIDIRECTIONAL ? 2 : 1; }
  // Number of pseudo-layers. A pseudo-layer is one direction of one layer.
  int pseudo_layers() const { return layers * directions(); }

  std::string description() const {
    const char* modes[] = {"rnn (relu)", "rnn (tanh)", "lstm", "gru"};
    const char* algorithms[] = {"standard", "persist-static", "", "persist-static-small-h"};
    std::ostringstream text;
    text << modes[mode] << ", " << name(type) << ", T = " << steps << ", B = " << batch << ", D = " << features
         << ", H = " << hidden << ", layers: " << layers << ", directions: " << directions() << ", algorithm "
         << algorithms[algorithm];
    return text.str();
  }

  static const char* name(DataType type) {
    switch (type) {
      case FLOAT: return "float32";
      case DOUBLE: return "float64";
      case HALF: return "float16";
      case BFLOAT16: return "bfloat16";
    }
    return "";
  }
};

// Owns a cuDNN descriptor.
template <class Kind>
class Descriptor {
 public:
  using Create = Status (*)(Kind**);
  using Destroy = Status (*)(Kind*);

  Descriptor(Create create, const char* name, Destroy destroy) : destroy_(destroy) { require(create(&kind_), name); }
  ~Descriptor() { destroy_(kind_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  operator Kind*() const { return kind_; }

 private:
  Destroy destroy_;
  Kind* kind_ = nullptr;
};

#define CUDNN_DESCRIPTOR(kind)                                                        \
  {                                                                                   \
    functions().cudnnCreate##kind##Descriptor, "cudnnCreate" #kind "Descriptor",      \
        functions().cudnnDestroy##kind##Descriptor                                    \
  }

// Memory that the passes need, in bytes.
struct Sizes {
  size_t weights = 0, workspace = 0, reserve = 0;
};

// The buffers of a pass. Buffers that the cell or the pass does not use are null.
struct Buffers {
  const void* xs = nullptr;
  const void* weights = nullptr;
  void* ys = nullptr;
  const void *h_first = nullptr, *c_first = nullptr;
  void *h_last = nullptr, *c_last = nullptr;
  const void *d_ys = nullptr, *d_h_last = nullptr, *d_c_last = nullptr;
  void *d_xs = nullptr, *d_h_first = nullptr, *d_c_first = nullptr, *d_weights = nullptr;
  void* workspace = nullptr;
  void* reserve = nullptr;
};

// The three passes of a recurrence. Each one queues work on the stream of the context.
class Passes {
 public:
  Passes(Context* context, const Problem& p) : context_(context) {
    CUDNN(cudnnSetDropoutDescriptor, dropout_, context, 0, nullptr, 0, 0);
    const Math math = p.type == HALF || p.type == BFLOAT16 ? TENSOR_OP_MATH : p.tf32 ? DEFAULT_MATH : FMA_MATH;
    CUDNN(cudnnSetRNNDescriptor_v8, recurrence_, p.algorithm, p.mode, DOUBLE_BIAS, p.direction, LINEAR_INPUT,
          p.type, p.type == DOUBLE ? DOUBLE : FLOAT, math, p.features, p.hidden, p.hidden, p.layers, dropout_,
          PADDED_IO_ENABLED);
    const std::vector<int> lengths(p.batch, p.steps);
    const auto set_sequences = [&](Sequences* sequences, int width) {
      CUDNN(cudnnSetRNNDataDescriptor, sequences, p.type, SEQ_MAJOR_UNPACKED, p.steps, p.batch, width,
            lengths.data(), nullptr);
    };
    set_sequences(xs_, p.features);
    set_sequences(ys_, p.hidden * p.directions());
    const int sizes[] = {p.pseudo_layers(), p.batch, p.hidden}, strides[] = {p.batch * p.hidden, p.hidden, 1};
    CUDNN(cudnnSetTensorNdDescriptor, h_, p.type, 3, sizes, strides);
    // As in PyTorch: c of an LSTM has the shape of h, and other cells have no descriptor for c.
    c_ = p.mode == LSTM ? static_cast<Tensor*>(h_) : nullptr;
  }

  Sizes sizes(ForwardMode mode) const {
    Sizes found;
    CUDNN(cudnnGetRNNWeightSpaceSize, context_, recurrence_, &found.weights);
    CUDNN(cudnnGetRNNTempSpaceSizes, context_, recurrence_, mode, xs_, &found.workspace, &found.reserve);
    return found;
  }

  // Returns the offsets of a matrix and its bias in the weights, in bytes. `product` is the index of the matrix in
  // the pseudo-layer: first the matrices of the inputs, one for each gate, then those of the hidden state.
  std::pair<int64_t, int64_t> offsets(int pseudo_layer, int product, size_t bytes) const {
    // cuDNN adds the offsets to this address. It does not access the memory.
    char* const base = reinterpret_cast<char*>(uintptr_t{1} << 32);
    void *matrix_data = nullptr, *bias_data = nullptr;
    const Descriptor<Tensor> matrix CUDNN_DESCRIPTOR(Tensor), bias CUDNN_DESCRIPTOR(Tensor);
    CUDNN(cudnnGetRNNWeightParams, context_, recurrence_, pseudo_layer, bytes, base, product, matrix, &matrix_data,
          bias, &bias_data);
    return {static_cast<char*>(matrix_data) - base, static_cast<char*>(bias_data) - base};
  }

  void forward(ForwardMode mode, const Buffers& a, const Sizes& s) const {
    CUDNN(cudnnRNNForward, context_, recurrence_, mode, nullptr, xs_, a.xs, ys_, a.ys, h_, a.h_first, a.h_last,
          c_, a.c_first, a.c_last, s.weights, a.weights, s.workspace, a.workspace, s.reserve, a.reserve);
  }

  // Writes to the reserve, which `backward_weights` reads.
  void backward_data(const Buffers& a, const Sizes& s) const {
    CUDNN(cudnnRNNBackwardData_v8, context_, recurrence_, nullptr, ys_, a.ys, a.d_ys, xs_, a.d_xs, h_, a.h_first,
          a.d_h_last, a.d_h_first, c_, a.c_first, a.d_c_last, a.d_c_first, s.weights, a.weights, s.workspace,
          a.workspace, s.reserve, a.reserve);
  }

  // Adds the gradient to d_weights.
  void backward_weights(const Buffers& a, const Sizes& s) const {
    CUDNN(cudnnRNNBackwardWeights_v8, context_, recurrence_, ADD, nullptr, xs_, a.xs, h_, a.h_first, ys_, a.ys,
          s.weights, a.d_weights, s.workspace, a.workspace, s.reserve, a.reserve);
  }

 private:
  Context* context_;
  Descriptor<Dropout> dropout_ CUDNN_DESCRIPTOR(Dropout);
  Descriptor<Recurrence> recurrence_ CUDNN_DESCRIPTOR(RNN);
  Descriptor<Sequences> xs_ CUDNN_DESCRIPTOR(RNNData), ys_ CUDNN_DESCRIPTOR(RNNData);
  Descriptor<Tensor> h_ CUDNN_DESCRIPTOR(Tensor);
  Tensor* c_;
};

}  // namespace cudnn
