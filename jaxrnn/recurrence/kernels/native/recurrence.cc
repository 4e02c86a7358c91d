// The passes and gradients as custom calls of XLA; calls.py makes their arguments. The shapes below are those of
// a call that is not mapped, and without batch_first.

#include "arrays.h"
#include "backward.h"
#include "forward.h"
#include "gradients.h"
#include "xla/ffi/api/ffi.h"

namespace {

// Returns run(kind) with the fastest kind of product on this processor, for operands of `rows` rows.
template <class Run>
ffi::Error with_product(bool narrow, [[maybe_unused]] int64_t rows, const Run& run) {
  if (!narrow) return run(Floats());
#if defined(JAXRNN_HAS_TILES)
  if (rows >= Tiles::WORTH_TILES && tiles_permitted()) return run(Tiles());
#endif
  return run(Pairs());
}

// Checks what both passes have in common and returns it, with the sizes of `steps` [T, B, H].
Problem describe(Checks& checks, int64_t cell, bool reverse, bool batch_first, const char* name,
                 const Steps& steps, const Weights& w_h, Form form, const FloatArray& vectors,
                 const Bools& reset, const Bools& active) {
  checks.require(cell >= RNN_TANH && cell <= GRU_AFTER, "there is no cell of kind " + std::to_string(cell));
  checks.rank(name, steps, 3);
  if (!checks.ok()) return {};
  const auto sizes = checks.sizes(steps);
  const Problem p{static_cast<Cell>(cell), reverse, batch_first, sizes[batch_first], sizes[!batch_first],
                  sizes[2]};
  check_packed(checks, "w_h", w_h, form, p.gates(), p.H, p.H);
  const bool peepholes = p.cell == LSTM && present(vectors);
  if (p.cell == GRU_AFTER) checks.shape("b_h", vectors, {p.H});
  else checks.shape_if(peepholes, p.cell == LSTM ? "w_c" : "b_h", vectors, {3, p.H});
  checks.shape_if(present(reset), "reset", reset, {sizes[0], sizes[1]});
  checks.shape_if(present(active), "active", active, {sizes[0], sizes[1]});
  return p;
}

ffi::Error forward(ffi::ThreadPool pool, Steps xs, Tokens tokens, Weights w_x, FloatArray b, Weights w_h,
                   FloatArray vectors, FloatArray h_first, FloatArray c_first, Bools reset, Bools active,
                   StepResults ys, Results h_last, Results c_last, StepResults previous_hidden, Results kept_gates,
                   Results extra, int64_t cell, bool reverse, bool batch_first) {
  const auto axes = mapped_axes(*ys, 3);
  Checks checks("jaxrnn_forward", axes);
  const Problem p =
      describe(checks, cell, reverse, batch_first, "ys", *ys, w_h, RECURRENT, vectors, reset, active);
  if (!checks.ok()) return checks.error();

  const int64_t T = p.T, B = p.B, H = p.H, G = p.gates() * H;
  // The axes of arrays of all steps.
  const int64_t first = batch_first ? B : T, second = batch_first ? T : B;
  const bool lstm = p.cell == LSTM, gated = p.gates() > 1, keep = present(*kept_gates);
  // Features of xs.
  int64_t D = 0;
  if (present(tokens)) {
    checks.shape("tokens", tokens, {first, second});
    checks.rank("the table", xs, 2);
    if (checks.ok()) checks.shape("the table", xs, {checks.sizes(xs)[0], G});
  } else {
    checks.rank(present(w_x) ? "xs" : "gx", xs, 3);
    if (checks.ok()) D = checks.sizes(xs)[2];
    checks.shape(present(w_x) ? "xs" : "gx", xs, {first, second, present(w_x) ? D : G});
  }
  if (present(w_x)) {
    checks.require(!present(tokens), "w_x and tokens must not both be given");
    check_packed(checks, "w_x", w_x, INPUT, p.gates(), D, H);
    checks.require(is_narrow(w_x) == is_narrow(w_h), "w_x must have the dtype of w_h");
  }
  check_dtype(checks, "xs", xs, is_narrow(w_h) && present(w_x));
  check_dtype(checks, "ys", *ys, is_narrow(w_h));
  check_dtype(checks, "previous_hidden", *previous_hidden, is_narrow(w_h));
  checks.shape_if(present(w_x), "b", b, {G});
  checks.shape("h", h_first, {B, H});
  checks.shape_if(lstm, "c", c_first, {B, H});
  checks.result("the last h", h_last, {B, H});
  checks.result_if(lstm, "the last c", c_last, {B, H});
  checks.result_if(keep, "previous_hidden", previous_hidden, {first, second, H});
  checks.result_if(keep, "gates", kept_gates, {first, second, G});
  checks.result_if(keep && gated, "extra", extra, {first, second, H});
  if (!checks.ok()) return checks.error();

  for (StepResults* x : {&ys, &previous_hidden}) expect_large(*x);
  for (Results* x : {&kept_gates, &extra}) expect_large(*x);
  const Members members(axes);
  // A single step may be one of sampling, whose text must not depend on the number of texts.
  const int64_t rows = T > 1 ? B : 1;
  return with_product(is_narrow(w_h), rows, [&](auto kind) {
    using Run = Forward<decltype(kind)>;
    return members.run(pool, T * B * G * (H + D), [&](Threads& threads, int64_t n) {
      const auto at = [&](auto& x) { return members.data(x, n); };
      using Weight = typename Run::Weight;
      Run run;
      static_cast<Problem&>(run) = p;
      run.reset = at(reset);
      run.active = at(active);
      if (present(tokens)) {
        run.tokens = at(tokens);
        run.table = at(xs).floats();
        run.rows_of_table = checks.sizes(xs)[0];
      } else if (present(w_x)) {
        run.xs = at(xs);
        run.w_x = {members.weights<Weight>(w_x, n), INPUT, p.cell, p.gates(), D, H};
        run.D = D;
        run.b = at(b);
      } else {
        run.gx = at(xs).floats();
      }
      run.w_h = {members.weights<Weight>(w_h, n), RECURRENT, p.cell, p.gates(), H, H};
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
  });
}

ffi::Error backward(ffi::ThreadPool pool, Weights w_h, FloatArray vectors, Steps previous_hidden,
                    FloatArray kept_gates, FloatArray extra, Steps d_ys, FloatArray d_h_last, FloatArray d_c_last,
                    Bools reset, Bools active, Results d_gx, Results d_q, Results d_h_first, Results d_c_first,
                    int64_t cell, bool reverse, bool batch_first) {
  const auto axes = mapped_axes(*d_gx, 3);
  Checks checks("jaxrnn_backward", axes);
  const Problem p =
      describe(checks, cell, reverse, batch_first, "d_ys", d_ys, w_h, TRANSPOSED, vectors, reset, active);
  if (!checks.ok()) return checks.error();

  const int64_t T = p.T, B = p.B, H = p.H, G = p.gates() * H;
  // The axes of arrays of all steps.
  const int64_t first = batch_first ? B : T, second = batch_first ? T : B;
  const bool lstm = p.cell == LSTM, gated = p.gates() > 1, after = p.cell == GRU_AFTER;
  check_dtype(checks, "d_ys", d_ys, is_narrow(w_h));
  check_dtype(checks, "previous_hidden", previous_hidden, is_narrow(w_h));
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

  for (Results* x : {&d_gx, &d_q}) expect_large(*x);
  const Members members(axes);
  return with_product(is_narrow(w_h), B, [&](auto kind) {
    using Run = Backward<decltype(kind)>;
    return members.run(pool, T * B * G * H, [&](Threads& threads, int64_t n) {
      const auto at = [&](auto& x) { return members.data(x, n); };
      Run run;
      static_cast<Problem&>(run) = p;
      run.reset = at(reset);
      run.active = at(active);
      run.w_h = {members.weights<typename Run::Weight>(w_h, n), TRANSPOSED, p.cell, p.gates(), H, H};
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
  });
}

ffi::Error pack(ffi::ThreadPool pool, Weights w, ffi::Result<Weights> packed, int64_t form, int64_t cell,
                int64_t gates) {
  const auto axes = mapped_axes(*packed, 1);
  Checks checks("jaxrnn_pack", axes);
  checks.rank("w", w, 2);
  checks.require(form >= RECURRENT && form <= TRANSPOSED, "there is no form " + std::to_string(form));
  check_dtype(checks, "w", w);
  checks.require(w.element_type() == packed->element_type(), "the result must have the dtype of w");
  if (!checks.ok()) return checks.error();
  const int64_t K = checks.sizes(w)[0], G = checks.sizes(w)[1];
  checks.require(gates > 0 && G % gates == 0,
                 std::to_string(G) + " columns are not " + std::to_string(gates) + " gates");
  if (!checks.ok()) return checks.error();
  const int64_t H = G / gates;
  const Form wanted = static_cast<Form>(form);
  checks.shape("w", w, {K, G});
  checks.result("the result", packed, {packed_size(is_narrow(w), wanted, gates, K, H)});
  if (!checks.ok()) return checks.error();
  use_huge_pages(packed->untyped_data(), packed->size_bytes());
  const Members members(axes);
  // The order is the same for all kinds of narrow products.
  const auto run = [&](auto kind) {
    using Kind = decltype(kind);
    using Weight = typename Kind::Weight;
    return members.run(pool, K * G, [&](Threads& threads, int64_t n) {
      const PackedCell<Kind> to(members.weights<Weight>(*packed, n), wanted, static_cast<Cell>(cell), gates, K, H);
      to.pack(threads, members.weights<Weight>(w, n), wanted, gates, K, H);
    });
  };
  return is_narrow(w) ? run(Pairs()) : run(Floats());
}

ffi::Error outer_call(ffi::ThreadPool pool, Steps x, FloatArray d, Results out, Results sums, int64_t first,
                      bool narrow) {
  const auto axes = mapped_axes(*out, 2);
  Checks checks("jaxrnn_outer", axes);
  checks.rank("x", x, 2);
  checks.rank("d", d, 2);
  checks.rank("the sums", *sums, 1);
  if (!checks.ok()) return checks.error();
  const int64_t N = checks.sizes(x)[0], K = checks.sizes(x)[1], G = checks.sizes(d)[1];
  const int64_t columns = checks.sizes(*sums)[0];
  check_dtype(checks, "x", x, narrow);
  checks.shape("x", x, {N, K});
  checks.shape("d", d, {N, G});
  checks.result("the result", out, {K, columns});
  checks.result("the sums", sums, {columns});
  checks.require(first >= 0 && columns <= G && first <= G - columns,
                "columns " + std::to_string(first) + " and on, " + std::to_string(columns) +
                    " of them, are not in d, which has " + std::to_string(G));
  if (!checks.ok()) return checks.error();
  const Members members(axes);
  return with_product(narrow, K, [&](auto kind) {
    return members.run(pool, N * K * columns, [&](Threads& threads, int64_t n) {
      outer<decltype(kind)>(threads, members.data(x, n), members.data(d, n), N, K, G, first, columns,
                            members.data(out, n), members.data(sums, n));
    });
  });
}

ffi::Error back_call(ffi::ThreadPool pool, FloatArray d, Weights w, StepResults out) {
  const auto axes = mapped_axes(*out, 2);
  Checks checks("jaxrnn_back", axes);
  checks.rank("d", d, 2);
  checks.rank("the result", *out, 2);
  if (!checks.ok()) return checks.error();
  const int64_t N = checks.sizes(d)[0], G = checks.sizes(d)[1], D = checks.sizes(*out)[1];
  checks.shape("d", d, {N, G});
  check_packed(checks, "w", w, TRANSPOSED, 1, D, G);
  checks.result("the result", out, {N, D});
  check_dtype(checks, "the result", *out, is_narrow(w));
  if (!checks.ok()) return checks.error();
  expect_large(out);
  const Members members(axes);
  return with_product(is_narrow(w), N, [&](auto kind) {
    using Kind = decltype(kind);
    return members.run(pool, N * G * D, [&](Threads& threads, int64_t n) {
      const PackedCell<Kind> w_t(members.weights<typename Kind::Weight>(w, n), TRANSPOSED, RNN_TANH, 1, D, G);
      back(threads, members.data(d, n), w_t.all, N, G, D, members.data(out, n));
    });
  });
}

ffi::Error sum_equal_call(ffi::ThreadPool pool, Tokens tokens, FloatArray d, Results out) {
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_pack, pack,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Weights>()  // w [K, G]
                                  .Ret<Weights>()  // packed
                                  .Attr<int64_t>("form")
                                  .Attr<int64_t>("cell")
                                  .Attr<int64_t>("gates"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_forward, forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Steps>()        // xs [T, B, D], gx [T, B, G] or the table [V, G]
                                  .Arg<Tokens>()   // [T, B]
                                  .Arg<Weights>()      // packed w_x [D, G]
                                  .Arg<FloatArray>()   // b [G]
                                  .Arg<Weights>()      // packed w_h [H, G]
                                  .Arg<FloatArray>()   // peepholes [3, H] or b_h [H]
                                  .Arg<FloatArray>()   // h [B, H] before the first step
                                  .Arg<FloatArray>()   // c [B, H]
                                  .Arg<Bools>()   // reset [T, B]
                                  .Arg<Bools>()   // active [T, B]
                                  .Ret<Steps>()        // ys [T, B, H]
                                  .Ret<FloatArray>()   // h after the last step
                                  .Ret<FloatArray>()   // c
                                  .Ret<Steps>()        // h before each step [T, B, H]
                                  .Ret<FloatArray>()   // the gates [T, B, G]
                                  .Ret<FloatArray>()   // c, r * h or q [T, B, H]
                                  .Attr<int64_t>("cell")
                                  .Attr<bool>("reverse")
                                  .Attr<bool>("batch_first"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_backward, backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Weights>()      // packed transpose of w_h [H, G]
                                  .Arg<FloatArray>()   // peepholes or b_h
                                  .Arg<Steps>()        // h before each step [T, B, H]
                                  .Arg<FloatArray>()   // the gates [T, B, G]
                                  .Arg<FloatArray>()   // c, r * h or q [T, B, H]
                                  .Arg<Steps>()        // d_ys [T, B, H]
                                  .Arg<FloatArray>()   // d_h after the last step [B, H]
                                  .Arg<FloatArray>()   // d_c
                                  .Arg<Bools>()   // reset [T, B]
                                  .Arg<Bools>()   // active [T, B]
                                  .Ret<FloatArray>()   // d_gx [T, B, G]
                                  .Ret<FloatArray>()   // d_q [T, B, H], of a reset-after GRU
                                  .Ret<FloatArray>()   // d_h before the first step
                                  .Ret<FloatArray>()   // d_c
                                  .Attr<int64_t>("cell")
                                  .Attr<bool>("reverse")
                                  .Attr<bool>("batch_first"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_outer, outer_call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Steps>()        // x [N, K]
                                  .Arg<FloatArray>()   // d [N, G]
                                  .Ret<FloatArray>()   // x^T d [K, columns]
                                  .Ret<FloatArray>()   // the sums of d [columns]
                                  .Attr<int64_t>("first")  // of d's columns
                                  .Attr<bool>("narrow"));  // whether to multiply bfloat16 numbers

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_back, back_call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<FloatArray>()    // d [N, G]
                                  .Arg<Weights>()       // packed transpose of w [D, G]
                                  .Ret<Steps>());       // d w^T [N, D]

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_sum_equal, sum_equal_call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Tokens>()    // [N]
                                  .Arg<FloatArray>()    // d [N, G]
                                  .Ret<FloatArray>());  // [V, G]
