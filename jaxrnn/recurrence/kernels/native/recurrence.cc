// The passes and gradients as custom calls of XLA; calls.py makes their arguments.

#include "backward.h"
#include "checks.h"
#include "forward.h"
#include "gradients.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Bools = ffi::Buffer<ffi::PRED>;
using Tokens = ffi::Buffer<ffi::S32>;
using Results = ffi::Result<Floats>;

namespace {

template <class Buffer>
bool present(const Buffer& x) {
  return x.element_count() != 0;
}

template <class Buffer>
auto data_or_null(Buffer& x) {
  return present(x) ? x.typed_data() : nullptr;
}

float* output_data(Results& x) {
  float* data = data_or_null(*x);
  if (data) use_huge_pages(data, x->size_bytes());
  return data;
}

template <class Run>
ffi::Error catch_out_of_memory(const Run& run) {
  try {
    run();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxrnn: out of memory");
  }
  return ffi::Error::Success();
}

// Checks and sets what both passes have in common, with the sizes of `steps` [T, B, H]. Nothing is set if
// these are wrong.
void describe(Checks& checks, Problem& p, int64_t kind, bool reverse, const char* name, const Floats& steps,
              const Floats& w_h, const Floats& vectors, Bools& reset, Bools& active) {
  checks.require(kind >= RNN_TANH && kind <= GRU_AFTER, "there is no cell of kind " + std::to_string(kind));
  checks.rank(name, steps, 3);
  if (!checks.ok()) return;
  const auto sizes = steps.dimensions();
  p = {static_cast<Kind>(kind), reverse, sizes[0], sizes[1], sizes[2], data_or_null(reset),
       data_or_null(active)};
  checks.shape("w_h", w_h, {p.H, p.gates() * p.H});
  const bool peepholes = p.kind == LSTM && present(vectors);
  if (p.kind == GRU_AFTER) checks.shape("b_h", vectors, {p.H});
  else checks.shape_if(peepholes, p.kind == LSTM ? "w_c" : "b_h", vectors, {3, p.H});
  checks.shape_if(present(reset), "reset", reset, {p.T, p.B});
  checks.shape_if(present(active), "active", active, {p.T, p.B});
}

ffi::Error forward(ffi::ThreadPool pool, Floats xs, Tokens tokens, Floats w_x, Floats b, Floats w_h,
                   Floats vectors, Floats h_first, Floats c_first, Bools reset, Bools active, Results ys,
                   Results h_last, Results c_last, Results previous_hidden, Results kept_gates, Results extra,
                   int64_t kind, bool reverse) {
  Checks checks("jaxrnn_forward");
  Forward run;
  describe(checks, run, kind, reverse, "ys", *ys, w_h, vectors, reset, active);
  if (!checks.ok()) return checks.error();

  const int64_t T = run.T, B = run.B, H = run.H, G = run.gates() * H;
  const bool lstm = run.kind == LSTM, gated = run.gates() > 1, keep = present(*kept_gates);
  if (present(tokens)) {
    checks.shape("tokens", tokens, {T, B});
    checks.rank("the table", w_x, 2);
    if (checks.ok()) checks.shape("the table", w_x, {w_x.dimensions()[0], G});
    checks.absent("xs", xs);
    checks.absent("b", b);
  } else if (present(w_x)) {
    checks.rank("w_x", w_x, 2);
    if (checks.ok()) checks.shape("w_x", w_x, {w_x.dimensions()[0], G});
    if (checks.ok()) checks.shape("xs", xs, {T, B, w_x.dimensions()[0]});
    checks.shape("b", b, {G});
  } else {
    checks.shape("gx", xs, {T, B, G});
    checks.absent("b", b);
  }
  checks.shape("h", h_first, {B, H});
  checks.shape_if(lstm, "c", c_first, {B, H});
  checks.shape("the last h", *h_last, {B, H});
  checks.shape_if(lstm, "the last c", *c_last, {B, H});
  checks.shape_if(keep, "previous_hidden", *previous_hidden, {T, B, H});
  checks.shape_if(keep, "gates", *kept_gates, {T, B, G});
  checks.shape_if(keep && gated, "extra", *extra, {T, B, H});
  if (!checks.ok()) return checks.error();

  if (present(tokens)) {
    run.tokens = tokens.typed_data();
    run.table = w_x.typed_data();
    run.rows_of_table = w_x.dimensions()[0];
  } else if (present(w_x)) {
    run.xs = xs.typed_data();
    run.w_x = w_x.typed_data();
    run.D = w_x.dimensions()[0];
    run.b = b.typed_data();
  } else {
    run.gx = xs.typed_data();
  }
  run.w_h = w_h.typed_data();
  run.vectors = data_or_null(vectors);
  run.h_first = h_first.typed_data();
  run.c_first = data_or_null(c_first);
  run.ys = output_data(ys);
  run.h_last = output_data(h_last);
  run.c_last = output_data(c_last);
  run.previous_hidden = output_data(previous_hidden);
  run.kept_gates = output_data(kept_gates);
  run.extra = output_data(extra);
  return catch_out_of_memory([&] { run.run(pool); });
}

ffi::Error backward(ffi::ThreadPool pool, Floats w_h, Floats vectors, Floats previous_hidden, Floats kept_gates,
                    Floats extra, Floats d_ys, Floats d_h_last, Floats d_c_last, Bools reset, Bools active,
                    Results d_gx, Results d_q, Results d_h_first, Results d_c_first, int64_t kind,
                    bool reverse) {
  Checks checks("jaxrnn_backward");
  Backward run;
  describe(checks, run, kind, reverse, "d_ys", d_ys, w_h, vectors, reset, active);
  if (!checks.ok()) return checks.error();

  const int64_t T = run.T, B = run.B, H = run.H, G = run.gates() * H;
  const bool lstm = run.kind == LSTM, gated = run.gates() > 1, after = run.kind == GRU_AFTER;
  checks.shape("previous_hidden", previous_hidden, {T, B, H});
  checks.shape("gates", kept_gates, {T, B, G});
  checks.shape_if(gated, "extra", extra, {T, B, H});
  checks.shape("d_h", d_h_last, {B, H});
  checks.shape_if(lstm, "d_c", d_c_last, {B, H});
  checks.shape("d_gx", *d_gx, {T, B, G});
  checks.shape_if(after, "d_q", *d_q, {T, B, H});
  checks.shape("the first d_h", *d_h_first, {B, H});
  checks.shape_if(lstm, "the first d_c", *d_c_first, {B, H});
  if (!checks.ok()) return checks.error();

  run.w_h = w_h.typed_data();
  run.vectors = data_or_null(vectors);
  run.previous_hidden = previous_hidden.typed_data();
  run.kept_gates = kept_gates.typed_data();
  run.extra = data_or_null(extra);
  run.d_ys = d_ys.typed_data();
  run.d_h_last = d_h_last.typed_data();
  run.d_c_last = data_or_null(d_c_last);
  run.d_gx = output_data(d_gx);
  run.d_q = output_data(d_q);
  run.d_h_first = output_data(d_h_first);
  run.d_c_first = output_data(d_c_first);
  return catch_out_of_memory([&] { run.run(pool); });
}

ffi::Error outer_call(ffi::ThreadPool pool, Floats x, Floats d, Results out, Results sums, int64_t first) {
  Checks checks("jaxrnn_outer");
  checks.rank("x", x, 2);
  checks.rank("d", d, 2);
  checks.rank("the sums", *sums, 1);
  if (!checks.ok()) return checks.error();
  const int64_t N = x.dimensions()[0], K = x.dimensions()[1], G = d.dimensions()[1];
  const int64_t columns = sums->dimensions()[0];
  checks.shape("d", d, {N, G});
  checks.shape("the result", *out, {K, columns});
  checks.require(first >= 0 && columns <= G && first <= G - columns,
                "columns " + std::to_string(first) + " and on, " + std::to_string(columns) +
                    " of them, are not in d, which has " + std::to_string(G));
  if (!checks.ok()) return checks.error();
  return catch_out_of_memory([&] {
    outer(pool, x.typed_data(), d.typed_data(), N, K, G, first, columns, output_data(out), output_data(sums));
  });
}

ffi::Error back_call(ffi::ThreadPool pool, Floats d, Floats w, Results out) {
  Checks checks("jaxrnn_back");
  checks.rank("d", d, 2);
  checks.rank("w", w, 2);
  if (!checks.ok()) return checks.error();
  const int64_t N = d.dimensions()[0], G = d.dimensions()[1], D = w.dimensions()[0];
  checks.shape("w", w, {D, G});
  checks.shape("the result", *out, {N, D});
  if (!checks.ok()) return checks.error();
  return catch_out_of_memory([&] { back(pool, d.typed_data(), w.typed_data(), N, G, D, output_data(out)); });
}

ffi::Error sum_equal_call(ffi::ThreadPool pool, Tokens tokens, Floats d, Results out) {
  Checks checks("jaxrnn_sum_equal");
  checks.rank("d", d, 2);
  checks.rank("the result", *out, 2);
  if (!checks.ok()) return checks.error();
  const int64_t N = d.dimensions()[0], G = d.dimensions()[1], rows = out->dimensions()[0];
  checks.shape("tokens", tokens, {N});
  checks.shape("the result", *out, {rows, G});
  if (!checks.ok()) return checks.error();
  return catch_out_of_memory(
      [&] { sum_equal(pool, tokens.typed_data(), d.typed_data(), N, G, rows, output_data(out)); });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_forward, forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()   // xs [T, B, D] or gx [T, B, G]
                                  .Arg<Tokens>()   // [T, B]
                                  .Arg<Floats>()   // w_x [D, G] or the table [V, G]
                                  .Arg<Floats>()   // b [G]
                                  .Arg<Floats>()   // w_h [H, G]
                                  .Arg<Floats>()   // peepholes [3, H] or b_h [H]
                                  .Arg<Floats>()   // h [B, H] before the first step
                                  .Arg<Floats>()   // c [B, H]
                                  .Arg<Bools>()   // reset [T, B]
                                  .Arg<Bools>()   // active [T, B]
                                  .Ret<Floats>()   // ys [T, B, H]
                                  .Ret<Floats>()   // h after the last step
                                  .Ret<Floats>()   // c
                                  .Ret<Floats>()   // h before each step [T, B, H]
                                  .Ret<Floats>()   // the gates [T, B, G]
                                  .Ret<Floats>()   // c, r * h or q [T, B, H]
                                  .Attr<int64_t>("kind")
                                  .Attr<bool>("reverse"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_backward, backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()   // w_h [H, G]
                                  .Arg<Floats>()   // peepholes or b_h
                                  .Arg<Floats>()   // h before each step [T, B, H]
                                  .Arg<Floats>()   // the gates [T, B, G]
                                  .Arg<Floats>()   // c, r * h or q [T, B, H]
                                  .Arg<Floats>()   // d_ys [T, B, H]
                                  .Arg<Floats>()   // d_h after the last step [B, H]
                                  .Arg<Floats>()   // d_c
                                  .Arg<Bools>()   // reset [T, B]
                                  .Arg<Bools>()   // active [T, B]
                                  .Ret<Floats>()   // d_gx [T, B, G]
                                  .Ret<Floats>()   // d_q [T, B, H], of a reset-after GRU
                                  .Ret<Floats>()   // d_h before the first step
                                  .Ret<Floats>()   // d_c
                                  .Attr<int64_t>("kind")
                                  .Attr<bool>("reverse"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_outer, outer_call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()   // x [N, K]
                                  .Arg<Floats>()   // d [N, G]
                                  .Ret<Floats>()   // x^T d [K, columns]
                                  .Ret<Floats>()   // the sums of d [columns]
                                  .Attr<int64_t>("first"));  // of d's columns

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_back, back_call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()    // d [N, G]
                                  .Arg<Floats>()    // w [D, G]
                                  .Ret<Floats>());  // d w^T [N, D]

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_sum_equal, sum_equal_call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Tokens>()    // [N]
                                  .Arg<Floats>()    // d [N, G]
                                  .Ret<Floats>());  // [V, G]
