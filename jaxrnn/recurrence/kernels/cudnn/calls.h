// The three passes as functions of XLA's buffers. They check every buffer before they pass it to cuDNN. calls.cc
// defines the handlers for GPUs.

#pragma once

#include <functional>
#include <limits>
#include <string>

#include "checks.h"
#include "recurrence.h"
#include "xla/ffi/api/ffi.h"

namespace cudnn {

namespace ffi = xla::ffi;
using Array = ffi::AnyBuffer;
using Bytes = ffi::Buffer<ffi::U8>;
using Output = ffi::Result<Array>;
using OutputBytes = ffi::Result<Bytes>;

// The device and stream of a call, and its allocator.
struct Execution {
  int device;
  void* stream;
  // Returns memory that is valid until the call returns, or null.
  std::function<void*(size_t)> allocate;
};

// The attributes of a handler.
struct Attributes {
  int64_t mode, algorithm, layers;
  bool both_directions, tf32;
};

inline void check_attributes(Checks& checks, const Attributes& s) {
  checks.require(s.mode >= RELU && s.mode <= GRU, "there is no cell of mode " + std::to_string(s.mode));
  const bool known = s.algorithm == STANDARD || s.algorithm == PERSIST_STATIC ||
                     s.algorithm == PERSIST_STATIC_SMALL_H;
  checks.require(known, "there is no algorithm " + std::to_string(s.algorithm));
  checks.require(s.layers >= 1 && s.layers <= 1000, "there cannot be " + std::to_string(s.layers) + " layers");
}

// Fills in the problem from the shapes of xs [T, B, D], or of its gradient, and h [pseudo-layers, B, H].
inline void read_problem(Checks& checks, Problem& p, const Attributes& s, const char* xs_name, const Array& xs,
                         const Array& h) {
  check_attributes(checks, s);
  checks.rank(xs_name, xs, 3);
  checks.rank("h", h, 3);
  if (!checks.ok()) return;
  // The batch is checked as a part of the stride of h.
  for (const int64_t size : {xs.dimensions()[0], xs.dimensions()[2], xs.dimensions()[1] * h.dimensions()[2]})
    checks.require(size <= std::numeric_limits<int>::max(),
                   "cuDNN supports sizes and strides up to 2^31 - 1, not " + std::to_string(size));
  if (!checks.ok()) return;
  switch (xs.element_type()) {
    case ffi::F32: p.type = FLOAT; break;
    case ffi::F64: p.type = DOUBLE; break;
    case ffi::F16: p.type = HALF; break;
    case ffi::BF16: p.type = BFLOAT16; break;
    default: checks.require(false, std::string(xs_name) + " must be float32, float64, float16 or bfloat16");
  }
  const auto sizes = [](const Array& x, int axis) { return static_cast<int>(x.dimensions()[axis]); };
  p.mode = static_cast<Mode>(s.mode);
  p.algorithm = static_cast<Algorithm>(s.algorithm);
  p.tf32 = s.tf32;
  p.layers = static_cast<int>(s.layers);
  p.direction = s.both_directions ? BIDIRECTIONAL : UNIDIRECTIONAL;
  p.steps = sizes(xs, 0), p.batch = sizes(xs, 1), p.features = sizes(xs, 2), p.hidden = sizes(h, 2);
}

// Requires the dtype of xs.
inline void require_dtype(Checks& checks, const Array& xs, const char* name, const Array& x) {
  checks.require(x.element_type() == xs.element_type(), std::string(name) + " must have the dtype of the others");
}

// Requires a shape, and the dtype of xs.
inline void require_like(Checks& checks, const Array& xs, const char* name, const Array& x,
                         const Checks::Shape& shape) {
  checks.shape(name, x, shape);
  require_dtype(checks, xs, name, x);
}

// Requires c [pseudo-layers, B, H] for an LSTM and no c for other cells.
inline void require_cell(Checks& checks, const Problem& p, const Array& xs, const char* name, const Array& c) {
  if (p.mode == LSTM) require_like(checks, xs, name, c, {p.pseudo_layers(), p.batch, p.hidden});
  else checks.absent(name, c);
}

template <class Buffer>
void* data_or_null(const Buffer& x) {
  return x.element_count() ? x.untyped_data() : nullptr;
}

// Runs a pass. Checks the sizes of the weights and the reserve against cuDNN's, and allocates the workspace.
template <class Pass>
ffi::Error run(const char* call, const Execution& execution, const Problem& p, ForwardMode mode,
               size_t weight_bytes, size_t reserve_bytes, Buffers& buffers, const Pass& pass) {
  try {
    const BorrowedContext context(execution.device, execution.stream);
    const Passes passes(context, p);
    Sizes sizes = passes.sizes(mode);
    if (sizes.weights != weight_bytes)
      throw CudnnError("the weights must have " + std::to_string(sizes.weights) + " bytes, not " +
                       std::to_string(weight_bytes));
    if (sizes.reserve > reserve_bytes)
      throw CudnnError("the reserve must have at least " + std::to_string(sizes.reserve) + " bytes, not " +
                       std::to_string(reserve_bytes));
    buffers.workspace = sizes.workspace ? execution.allocate(sizes.workspace) : nullptr;
    if (sizes.workspace && !buffers.workspace)
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, std::string(call) + ": no memory for a workspace of " +
                                                                std::to_string(sizes.workspace) + " bytes");
    pass(passes, sizes);
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal,
                      std::string(call) + ": " + error.what() + " (" + p.description() + ")");
  }
  return ffi::Error::Success();
}

// The forward pass, for inference if there is no reserve and for training otherwise.
inline ffi::Error forward(const Execution& execution, Array xs, Array h, Array c, Array weights, Output ys,
                          Output h_last, Output c_last, OutputBytes reserve, int64_t mode, int64_t algorithm,
                          int64_t layers, bool both_directions, bool tf32) {
  Checks checks("jaxrnn_cudnn_forward");
  Problem p;
  read_problem(checks, p, {mode, algorithm, layers, both_directions, tf32}, "xs", xs, h);
  if (!checks.ok()) return checks.error();
  require_like(checks, xs, "h", h, {p.pseudo_layers(), p.batch, p.hidden});
  require_cell(checks, p, xs, "c", c);
  checks.rank("weights", weights, 1);
  require_dtype(checks, xs, "weights", weights);
  require_like(checks, xs, "ys", *ys, {p.steps, p.batch, p.hidden * p.directions()});
  require_like(checks, xs, "the last h", *h_last, {p.pseudo_layers(), p.batch, p.hidden});
  require_cell(checks, p, xs, "the last c", *c_last);
  if (!checks.ok()) return checks.error();

  Buffers a;
  a.xs = xs.untyped_data();
  a.weights = weights.untyped_data();
  a.ys = ys->untyped_data();
  a.h_first = h.untyped_data();
  a.h_last = h_last->untyped_data();
  a.c_first = data_or_null(c);
  a.c_last = data_or_null(*c_last);
  a.reserve = data_or_null(*reserve);
  const ForwardMode how = a.reserve ? TRAINING : INFERENCE;
  return run("jaxrnn_cudnn_forward", execution, p, how, weights.size_bytes(), reserve->size_bytes(), a,
             [&](const Passes& passes, const Sizes& sizes) { passes.forward(how, a, sizes); });
}

// `reserve` and `reserve_after` must share their memory, because cuDNN writes to it.
inline ffi::Error backward_data(const Execution& execution, Array ys, Array h, Array c, Array weights, Array d_ys,
                                Array d_h_last, Array d_c_last, Bytes reserve, Output d_xs, Output d_h, Output d_c,
                                OutputBytes reserve_after, int64_t mode, int64_t algorithm, int64_t layers,
                                bool both_directions, bool tf32) {
  Checks checks("jaxrnn_cudnn_backward_data");
  Problem p;
  read_problem(checks, p, {mode, algorithm, layers, both_directions, tf32}, "d_xs", *d_xs, h);
  if (!checks.ok()) return checks.error();
  const Checks::Shape outputs = {p.steps, p.batch, p.hidden * p.directions()};
  const Checks::Shape state = {p.pseudo_layers(), p.batch, p.hidden};
  require_like(checks, *d_xs, "h", h, state);
  require_cell(checks, p, *d_xs, "c", c);
  require_like(checks, *d_xs, "ys", ys, outputs);
  checks.rank("weights", weights, 1);
  require_dtype(checks, *d_xs, "weights", weights);
  require_like(checks, *d_xs, "d_ys", d_ys, outputs);
  require_like(checks, *d_xs, "the last d_h", d_h_last, state);
  require_cell(checks, p, *d_xs, "the last d_c", d_c_last);
  require_like(checks, *d_xs, "d_h", *d_h, state);
  require_cell(checks, p, *d_xs, "d_c", *d_c);
  checks.require(reserve.untyped_data() == reserve_after->untyped_data() &&
                     reserve.size_bytes() == reserve_after->size_bytes(),
                 "the reserve must be an alias of its result");
  if (!checks.ok()) return checks.error();

  Buffers a;
  a.weights = weights.untyped_data();
  a.ys = ys.untyped_data();
  a.h_first = h.untyped_data();
  a.c_first = data_or_null(c);
  a.d_ys = d_ys.untyped_data();
  a.d_h_last = d_h_last.untyped_data();
  a.d_c_last = data_or_null(d_c_last);
  a.d_xs = d_xs->untyped_data();
  a.d_h_first = d_h->untyped_data();
  a.d_c_first = data_or_null(*d_c);
  a.reserve = reserve_after->untyped_data();
  return run("jaxrnn_cudnn_backward_data", execution, p, TRAINING, weights.size_bytes(), reserve.size_bytes(), a,
             [&](const Passes& passes, const Sizes& sizes) { passes.backward_data(a, sizes); });
}

// `zeros` and `d_weights` must share their memory, because cuDNN adds the gradient to what is there.
inline ffi::Error backward_weights(const Execution& execution, Array xs, Array h, Array ys, Bytes reserve,
                                   Array zeros, Output d_weights, int64_t mode, int64_t algorithm, int64_t layers,
                                   bool both_directions, bool tf32) {
  Checks checks("jaxrnn_cudnn_backward_weights");
  Problem p;
  read_problem(checks, p, {mode, algorithm, layers, both_directions, tf32}, "xs", xs, h);
  if (!checks.ok()) return checks.error();
  require_like(checks, xs, "h", h, {p.pseudo_layers(), p.batch, p.hidden});
  require_like(checks, xs, "ys", ys, {p.steps, p.batch, p.hidden * p.directions()});
  checks.rank("d_weights", *d_weights, 1);
  require_dtype(checks, xs, "d_weights", *d_weights);
  checks.require(zeros.untyped_data() == d_weights->untyped_data() && zeros.size_bytes() == d_weights->size_bytes(),
                 "the zeros must be an alias of d_weights");
  if (!checks.ok()) return checks.error();

  Buffers a;
  a.xs = xs.untyped_data();
  a.ys = ys.untyped_data();
  a.h_first = h.untyped_data();
  a.d_weights = d_weights->untyped_data();
  a.reserve = reserve.untyped_data();
  return run("jaxrnn_cudnn_backward_weights", execution, p, TRAINING, d_weights->size_bytes(),
             reserve.size_bytes(), a,
             [&](const Passes& passes, const Sizes& sizes) { passes.backward_weights(a, sizes); });
}

// The bindings of the handlers: each function appends the buffers and attributes of a call to the platform's context.

template <class Binding>
auto with_attributes(Binding binding) {
  return std::move(binding)
      .template Attr<int64_t>("mode")
      .template Attr<int64_t>("algorithm")
      .template Attr<int64_t>("layers")
      .template Attr<bool>("both_directions")
      .template Attr<bool>("tf32");
}

template <class Binding>
auto bind_forward(Binding context) {
  return with_attributes(std::move(context)
                             .template Arg<Array>()    // xs [T, B, D]
                             .template Arg<Array>()    // h [pseudo-layers, B, H] before the first step
                             .template Arg<Array>()    // c [pseudo-layers, B, H], of an LSTM
                             .template Arg<Array>()    // weights [N]
                             .template Ret<Array>()    // ys [T, B, directions * H]
                             .template Ret<Array>()    // h after the last step
                             .template Ret<Array>()    // c after the last step
                             .template Ret<Bytes>());  // the reserve [B, R], or none
}

template <class Binding>
auto bind_backward_data(Binding context) {
  return with_attributes(std::move(context)
                             .template Arg<Array>()    // ys
                             .template Arg<Array>()    // h before the first step
                             .template Arg<Array>()    // c
                             .template Arg<Array>()    // weights
                             .template Arg<Array>()    // d_ys
                             .template Arg<Array>()    // d_h after the last step
                             .template Arg<Array>()    // d_c
                             .template Arg<Bytes>()    // the reserve
                             .template Ret<Array>()    // d_xs
                             .template Ret<Array>()    // d_h before the first step
                             .template Ret<Array>()    // d_c
                             .template Ret<Bytes>());  // the reserve for `backward_weights`
}

template <class Binding>
auto bind_backward_weights(Binding context) {
  return with_attributes(std::move(context)
                             .template Arg<Array>()    // xs
                             .template Arg<Array>()    // h before the first step
                             .template Arg<Array>()    // ys
                             .template Arg<Bytes>()    // the reserve from `backward_data`
                             .template Arg<Array>()    // zeros [N]
                             .template Ret<Array>());  // d_weights [N]
}

}  // namespace cudnn
