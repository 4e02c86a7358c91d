// The two passes as XLA's custom calls; jaxrnn/kernels/cpu/__init__.py says what the arguments are.

#include "backward.h"
#include "forward.h"
#include "gradients.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Truths = ffi::Buffer<ffi::PRED>;
using Tokens = ffi::Buffer<ffi::S32>;

namespace {

// An argument without elements is one that is not there.
template <class Buffer>
auto there(Buffer& x) {
  return x.element_count() ? x.typed_data() : nullptr;
}

Problem problem(int64_t kind, bool reverse, const Floats& w_h, Truths& reset, Truths& active,
                ffi::Span<const int64_t> steps) {
  return {static_cast<Kind>(kind), reverse, steps[0], steps[1], w_h.dimensions()[0], there(reset),
          there(active)};
}

float* fresh(ffi::Result<Floats>& x) {
  float* data = there(*x);
  if (data) in_huge_pages(data, x->size_bytes());
  return data;
}

ffi::Error forward(ffi::ThreadPool pool, Floats xs, Tokens tokens, Floats w_x, Floats b, Floats w_h,
                   Floats vectors, Floats h_first, Floats c_first, Truths reset, Truths active,
                   ffi::Result<Floats> ys, ffi::Result<Floats> h_last, ffi::Result<Floats> c_last,
                   ffi::Result<Floats> entered, ffi::Result<Floats> kept, ffi::Result<Floats> extra,
                   int64_t kind, bool reverse) {
  Forward run;
  static_cast<Problem&>(run) = problem(kind, reverse, w_h, reset, active, ys->dimensions());
  if (tokens.element_count()) {
    run.tokens = tokens.typed_data();
    run.table = w_x.typed_data();
    run.rows_of_table = w_x.dimensions()[0];
  } else if (w_x.element_count()) {
    run.xs = xs.typed_data();
    run.w_x = w_x.typed_data();
    run.D = w_x.dimensions()[0];
    run.b = b.typed_data();
  } else {
    run.gx = xs.typed_data();
  }
  run.w_h = w_h.typed_data();
  run.vectors = there(vectors);
  run.h_first = h_first.typed_data();
  run.c_first = there(c_first);
  run.ys = fresh(ys);
  run.h_last = fresh(h_last);
  run.c_last = fresh(c_last);
  run.entered = fresh(entered);
  run.kept = fresh(kept);
  run.extra = fresh(extra);
  run.run(pool);
  return ffi::Error::Success();
}

ffi::Error backward(ffi::ThreadPool pool, Floats w_h, Floats vectors, Floats entered, Floats kept,
                    Floats extra, Floats d_ys, Floats d_h_last, Floats d_c_last, Truths reset, Truths active,
                    ffi::Result<Floats> d_gx, ffi::Result<Floats> d_q, ffi::Result<Floats> d_h_first,
                    ffi::Result<Floats> d_c_first, int64_t kind, bool reverse) {
  Backward run;
  static_cast<Problem&>(run) = problem(kind, reverse, w_h, reset, active, d_ys.dimensions());
  run.w_h = w_h.typed_data();
  run.vectors = there(vectors);
  run.entered = entered.typed_data();
  run.kept = kept.typed_data();
  run.extra = there(extra);
  run.d_ys = d_ys.typed_data();
  run.d_h_last = d_h_last.typed_data();
  run.d_c_last = there(d_c_last);
  run.d_gx = fresh(d_gx);
  run.d_q = fresh(d_q);
  run.d_h_first = fresh(d_h_first);
  run.d_c_first = fresh(d_c_first);
  run.run(pool);
  return ffi::Error::Success();
}

ffi::Error outer_call(ffi::ThreadPool pool, Floats x, Floats d, ffi::Result<Floats> out,
                      ffi::Result<Floats> sums, int64_t first) {
  const auto rows = x.dimensions(), d_rows = d.dimensions();
  outer(pool, x.typed_data(), d.typed_data(), rows[0], rows[1], d_rows[1], first, sums->dimensions()[0],
        out->typed_data(), sums->typed_data());
  return ffi::Error::Success();
}

ffi::Error back_call(ffi::ThreadPool pool, Floats d, Floats w, ffi::Result<Floats> out) {
  const auto rows = d.dimensions();
  back(pool, d.typed_data(), w.typed_data(), rows[0], rows[1], w.dimensions()[0], fresh(out));
  return ffi::Error::Success();
}

ffi::Error sum_equal_call(ffi::ThreadPool pool, Tokens tokens, Floats d, ffi::Result<Floats> out) {
  const auto rows = d.dimensions();
  sum_equal(pool, tokens.typed_data(), d.typed_data(), rows[0], rows[1], out->dimensions()[0], fresh(out));
  return ffi::Error::Success();
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
                                  .Arg<Truths>()   // reset [T, B]
                                  .Arg<Truths>()   // active [T, B]
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
                                  .Arg<Truths>()   // reset [T, B]
                                  .Arg<Truths>()   // active [T, B]
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
