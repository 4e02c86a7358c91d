// The passes and gradients as custom calls of XLA; calls.py makes their arguments. The shapes below are those of
// a call that is not mapped, and without batch_first.

#include <numeric>
#include <utility>

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

void expect_large(const Floats& x) { use_huge_pages(x.typed_data(), x.size_bytes()); }

// Returns the lengths of the mapped axes of a call, from a result that has `rank` axes besides.
template <class Buffer>
Checks::Shape mapped_axes(const Buffer& x, size_t rank) {
  const auto sizes = x.dimensions();
  return Checks::Shape(sizes.begin(), sizes.end() - std::min(rank, sizes.size()));
}

// The members of a call that `jax.vmap` has mapped: problems of their own, one for each element of the mapped
// axes. A call that is not mapped has one member.
class Members {
 public:
  explicit Members(Checks::Shape axes) : axes_(std::move(axes)) {
    for (const int64_t length : axes_) count_ *= length;
  }

  // Returns the part of an array that belongs to member n; null if the array is absent.
  template <class Buffer>
  auto data(const Buffer& x, int64_t n) const -> decltype(x.typed_data()) {
    if (!present(x)) return nullptr;
    const auto sizes = x.dimensions();
    int64_t stride = x.element_count(), at = 0;
    for (size_t axis = 0; axis < axes_.size(); ++axis) stride /= sizes[axis];
    for (size_t axis = axes_.size(); axis-- > 0; n /= axes_[axis]) {
      // The length is 1 if all members share the array.
      at += n % axes_[axis] % sizes[axis] * stride;
      stride *= sizes[axis];
    }
    return x.typed_data() + at;
  }
  template <class Buffer>
  auto data(ffi::Result<Buffer>& x, int64_t n) const {
    return data(*x, n);
  }

  // Runs run(threads, n) for every member n. work: multiply-adds of one member.
  template <class Run>
  ffi::Error run(ffi::ThreadPool& pool, int64_t work, const Run& run) const {
    // With few members, several threads share each, so that all threads have about the same work.
    const int64_t threads = pool.num_threads();
    const int64_t each = count_ >= 4 * threads ? 1 : threads / std::gcd(threads, count_);
    try {
      parallel_for(pool, count_, count_ * work, [&](int64_t n) {
        Threads some(pool, each);
        run(some, n);
      });
    } catch (const std::bad_alloc&) {
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxrnn: out of memory");
    }
    return ffi::Error::Success();
  }

 private:
  Checks::Shape axes_;
  int64_t count_ = 1;
};

// Checks what both passes have in common and returns it, with the sizes of `steps` [T, B, H].
Problem describe(Checks& checks, int64_t kind, bool reverse, bool batch_first, const char* name,
                 const Floats& steps, const Floats& w_h, const Floats& vectors, const Bools& reset,
                 const Bools& active) {
  checks.require(kind >= RNN_TANH && kind <= GRU_AFTER, "there is no cell of kind " + std::to_string(kind));
  checks.rank(name, steps, 3);
  if (!checks.ok()) return {};
  const auto sizes = checks.sizes(steps);
  const Problem p{static_cast<Kind>(kind), reverse, batch_first, sizes[batch_first], sizes[!batch_first],
                  sizes[2]};
  checks.shape("w_h", w_h, {p.H, p.gates() * p.H});
  const bool peepholes = p.kind == LSTM && present(vectors);
  if (p.kind == GRU_AFTER) checks.shape("b_h", vectors, {p.H});
  else checks.shape_if(peepholes, p.kind == LSTM ? "w_c" : "b_h", vectors, {3, p.H});
  checks.shape_if(present(reset), "reset", reset, {sizes[0], sizes[1]});
  checks.shape_if(present(active), "active", active, {sizes[0], sizes[1]});
  return p;
}

ffi::Error forward(ffi::ThreadPool pool, Floats xs, Tokens tokens, Floats w_x, Floats b, Floats w_h,
                   Floats vectors, Floats h_first, Floats c_first, Bools reset, Bools active, Results ys,
                   Results h_last, Results c_last, Results previous_hidden, Results kept_gates, Results extra,
                   int64_t kind, bool reverse, bool batch_first) {
  const auto axes = mapped_axes(*ys, 3);
  Checks checks("jaxrnn_forward", axes);
  const Problem p = describe(checks, kind, reverse, batch_first, "ys", *ys, w_h, vectors, reset, active);
  if (!checks.ok()) return checks.error();

  const int64_t T = p.T, B = p.B, H = p.H, G = p.gates() * H;
  // The axes of arrays of all steps.
  const int64_t first = batch_first ? B : T, second = batch_first ? T : B;
  const bool lstm = p.kind == LSTM, gated = p.gates() > 1, keep = present(*kept_gates);
  // Rows of w_x or of the table.
  int64_t D = 0;
  if (present(w_x)) {
    checks.rank("w_x or the table", w_x, 2);
    if (checks.ok()) D = checks.sizes(w_x)[0];
    checks.shape("w_x or the table", w_x, {D, G});
  }
  if (present(tokens)) {
    checks.shape("tokens", tokens, {first, second});
    checks.require(present(w_x), "tokens need a table");
    checks.absent("xs", xs);
    checks.absent("b", b);
  } else {
    checks.shape(present(w_x) ? "xs" : "gx", xs, {first, second, present(w_x) ? D : G});
    checks.shape_if(present(w_x), "b", b, {G});
  }
  checks.shape("h", h_first, {B, H});
  checks.shape_if(lstm, "c", c_first, {B, H});
  checks.result("the last h", h_last, {B, H});
  checks.result_if(lstm, "the last c", c_last, {B, H});
  checks.result_if(keep, "previous_hidden", previous_hidden, {first, second, H});
  checks.result_if(keep, "gates", kept_gates, {first, second, G});
  checks.result_if(keep && gated, "extra", extra, {first, second, H});
  if (!checks.ok()) return checks.error();

  for (Results* x : {&ys, &previous_hidden, &kept_gates, &extra}) expect_large(**x);
  const Members members(axes);
  return members.run(pool, T * B * G * (H + D), [&](Threads& threads, int64_t n) {
    const auto at = [&](auto& x) { return members.data(x, n); };
    Forward run;
    static_cast<Problem&>(run) = p;
    run.reset = at(reset);
    run.active = at(active);
    if (present(tokens)) {
      run.tokens = at(tokens);
      run.table = at(w_x);
      run.rows_of_table = D;
    } else if (present(w_x)) {
      run.xs = at(xs);
      run.w_x = at(w_x);
      run.D = D;
      run.b = at(b);
    } else {
      run.gx = at(xs);
    }
    run.w_h = at(w_h);
    run.vectors = at(vectors);
    run.h_first = at(h_first);
    run.c_first = at(c_first);
    run.ys = at(ys);
    run.h_last = at(h_last);
    run.c_last = at(c_last);
    run.previous_hidden = at(previous_hidden);
    run.kept_gates = at(kept_gates);
    run.extra = at(extra);
    run.run(threads);
  });
}

ffi::Error backward(ffi::ThreadPool pool, Floats w_h, Floats vectors, Floats previous_hidden, Floats kept_gates,
                    Floats extra, Floats d_ys, Floats d_h_last, Floats d_c_last, Bools reset, Bools active,
                    Results d_gx, Results d_q, Results d_h_first, Results d_c_first, int64_t kind,
                    bool reverse, bool batch_first) {
  const auto axes = mapped_axes(*d_gx, 3);
  Checks checks("jaxrnn_backward", axes);
  const Problem p = describe(checks, kind, reverse, batch_first, "d_ys", d_ys, w_h, vectors, reset, active);
  if (!checks.ok()) return checks.error();

  const int64_t T = p.T, B = p.B, H = p.H, G = p.gates() * H;
  // The axes of arrays of all steps.
  const int64_t first = batch_first ? B : T, second = batch_first ? T : B;
  const bool lstm = p.kind == LSTM, gated = p.gates() > 1, after = p.kind == GRU_AFTER;
  checks.shape("d_ys", d_ys, {first, second, H});
  checks.shape("previous_hidden", previous_hidden, {first, second, H});
  checks.shape("gates", kept_gates, {first, second, G});
  checks.shape_if(gated, "extra", extra, {first, second, H});
  checks.shape("d_h", d_h_last, {B, H});
  checks.shape_if(lstm, "d_c", d_c_last, {B, H});
  checks.result("d_gx", d_gx, {first, second, G});
  checks.result_if(after, "d_q", d_q, {first, second, H});
  checks.result("the first d_h", d_h_first, {B, H});
  checks.result_if(lstm, "the first d_c", d_c_first, {B, H});
  if (!checks.ok()) return checks.error();

  for (Results* x : {&d_gx, &d_q}) expect_large(**x);
  const Members members(axes);
  return members.run(pool, T * B * G * H, [&](Threads& threads, int64_t n) {
    const auto at = [&](auto& x) { return members.data(x, n); };
    Backward run;
    static_cast<Problem&>(run) = p;
    run.reset = at(reset);
    run.active = at(active);
    run.w_h = at(w_h);
    run.vectors = at(vectors);
    run.previous_hidden = at(previous_hidden);
    run.kept_gates = at(kept_gates);
    run.extra = at(extra);
    run.d_ys = at(d_ys);
    run.d_h_last = at(d_h_last);
    run.d_c_last = at(d_c_last);
    run.d_gx = at(d_gx);
    run.d_q = at(d_q);
    run.d_h_first = at(d_h_first);
    run.d_c_first = at(d_c_first);
    run.run(threads);
  });
}

ffi::Error outer_call(ffi::ThreadPool pool, Floats x, Floats d, Results out, Results sums, int64_t first) {
  const auto axes = mapped_axes(*out, 2);
  Checks checks("jaxrnn_outer", axes);
  checks.rank("x", x, 2);
  checks.rank("d", d, 2);
  checks.rank("the sums", *sums, 1);
  if (!checks.ok()) return checks.error();
  const int64_t N = checks.sizes(x)[0], K = checks.sizes(x)[1], G = checks.sizes(d)[1];
  const int64_t columns = checks.sizes(*sums)[0];
  checks.shape("x", x, {N, K});
  checks.shape("d", d, {N, G});
  checks.result("the result", out, {K, columns});
  checks.result("the sums", sums, {columns});
  checks.require(first >= 0 && columns <= G && first <= G - columns,
                "columns " + std::to_string(first) + " and on, " + std::to_string(columns) +
                    " of them, are not in d, which has " + std::to_string(G));
  if (!checks.ok()) return checks.error();
  const Members members(axes);
  return members.run(pool, N * K * columns, [&](Threads& threads, int64_t n) {
    outer(threads, members.data(x, n), members.data(d, n), N, K, G, first, columns, members.data(out, n),
          members.data(sums, n));
  });
}

ffi::Error back_call(ffi::ThreadPool pool, Floats d, Floats w, Results out) {
  const auto axes = mapped_axes(*out, 2);
  Checks checks("jaxrnn_back", axes);
  checks.rank("d", d, 2);
  checks.rank("w", w, 2);
  if (!checks.ok()) return checks.error();
  const int64_t N = checks.sizes(d)[0], G = checks.sizes(d)[1], D = checks.sizes(w)[0];
  checks.shape("d", d, {N, G});
  checks.shape("w", w, {D, G});
  checks.result("the result", out, {N, D});
  if (!checks.ok()) return checks.error();
  expect_large(*out);
  const Members members(axes);
  return members.run(pool, N * G * D, [&](Threads& threads, int64_t n) {
    back(threads, members.data(d, n), members.data(w, n), N, G, D, members.data(out, n));
  });
}

ffi::Error sum_equal_call(ffi::ThreadPool pool, Tokens tokens, Floats d, Results out) {
  const auto axes = mapped_axes(*out, 2);
  Checks checks("jaxrnn_sum_equal", axes);
  checks.rank("d", d, 2);
  checks.rank("the result", *out, 2);
  if (!checks.ok()) return checks.error();
  const int64_t N = checks.sizes(d)[0], G = checks.sizes(d)[1], rows = checks.sizes(*out)[0];
  checks.shape("tokens", tokens, {N});
  checks.shape("d", d, {N, G});
  checks.result("the result", out, {rows, G});
  if (!checks.ok()) return checks.error();
  const Members members(axes);
  return members.run(pool, N * G, [&](Threads& threads, int64_t n) {
    sum_equal(threads, members.data(tokens, n), members.data(d, n), N, G, rows, members.data(out, n));
  });
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
                                  .Attr<bool>("reverse")
                                  .Attr<bool>("batch_first"));

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
                                  .Attr<bool>("reverse")
                                  .Attr<bool>("batch_first"));

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
