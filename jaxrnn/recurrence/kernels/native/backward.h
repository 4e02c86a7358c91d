// The backward pass through the recurrence: the derivatives with respect to the gates' inputs, from the last step
// that was run to the first. The derivatives of a step are in jaxrnn/recurrence/equations.py.

#pragma once

#include "forward.h"

template <class Kind>
class Backward : public Problem {
 public:
  using Operand = typename Kind::Operand;
  using Weight = typename Kind::Weight;

  // The packed transpose of w_h; `vectors` as in Forward.
  PackedCell<Kind> w_h;
  const float* vectors;
  // As Forward left them.
  Series previous_hidden;
  const float *kept_gates, *extra;
  // [T, B, H], [B, H].
  Series d_ys;
  const float *d_h_last, *d_c_last;
  // d_gx [T, B, G], which may be `kept_gates` itself; [B, H].
  float *d_gx, *d_h_first, *d_c_first;
  // [T, B, H], the derivative with respect to q = h w_n + b_h of a GRU that resets after the product. It may be
  // `extra` itself.
  float* d_q = nullptr;

  void run(Threads& threads) {
    const int64_t size = B * width();
    for (Scratch<>* scratch : {&d_h_, &d_c_, &d_rh_}) *scratch = Scratch<>::zeros(size);
    if (Kind::NARROW) operand_ = Operands<Kind>(B, gates() * block());
    for (int64_t row = 0; row < B; ++row) {
      std::memcpy(d_h_ + row * width(), d_h_last + row * H, H * sizeof(float));
      if (cell == LSTM) std::memcpy(d_c_ + row * width(), d_c_last + row * H, H * sizeof(float));
    }
    const int64_t phases = cell == GRU_BEFORE ? 3 : 2;
    run_steps<Kind>(threads, *this, phases, [this, phases](const Share& mine, int64_t n, int64_t phase) {
      const int64_t t = reverse ? n : T - 1 - n;
      if (phase == 0) gates_backward(mine, t);
      else if (phase < phases - 1) gru_before_reset(mine, t);
      else products_backward(mine, t);
    });
    for (int64_t row = 0; row < B; ++row) {
      std::memcpy(d_h_first + row * H, d_h_ + row * width(), H * sizeof(float));
      if (cell == LSTM) std::memcpy(d_c_first + row * H, d_c_ + row * width(), H * sizeof(float));
    }
  }

 private:
  Scratch<> d_h_, d_c_, d_rh_;
  // The derivatives of a step with respect to what w_h produces, as operands: [B, gates, block].
  Operands<Kind> operand_;

  int64_t G() const { return gates() * H; }
  // H with its padding.
  int64_t block() const { return round_up(H, Kind::K_STRIDE); }

  void gates_backward(const Share& mine, int64_t t) {
    if (cell == LSTM) lstm(mine, t);
    else if (cell == GRU_BEFORE) gru_before(mine, t);
    else if (cell == GRU_AFTER) gru_after(mine, t);
    else rnn(mine, t);
  }

  void products_backward(const Share& mine, int64_t t) {
    if (cell == GRU_AFTER) {
      multiply(mine, operand(t, 0), 0, 2, d_h_);
      multiply(mine, operand_of_q(t), 2, 1, d_h_);
    } else {
      multiply(mine, operand(t, 0), 0, cell == GRU_BEFORE ? 2 : gates(), d_h_);
    }
    const int64_t bytes = (mine.end - mine.unit) * sizeof(float);
    for (int64_t row = mine.row; row < mine.row + mine.rows; ++row)
      if (resets(t, row)) {
        std::memset(d_h_ + row * width() + mine.unit, 0, bytes);
        std::memset(d_c_ + row * width() + mine.unit, 0, bytes);
      }
  }

  // d_gx of a step from a gate on, as operands.
  Left<Operand> operand(int64_t t, int64_t gate) const {
    if constexpr (Kind::NARROW) return operand_.left(0, gate * block());
    else return {d_gx + place(t, 0) * G() + gate * H, row_stride() * G(), 1};
  }
  // Of a GRU that resets after the product: d_q, in the place of the derivative of n.
  Left<Operand> operand_of_q(int64_t t) const {
    if constexpr (Kind::NARROW) return operand(t, 2);
    else return {d_q + place(t, 0) * H, row_stride() * H, 1};
  }
  ALWAYS_INLINE void put_operand(int64_t row, int64_t gate, int64_t unit, Vec d) {
    if constexpr (Kind::NARROW) Kind::put(operand_.at(row, gate * block() + unit), d, H - unit);
  }

  // Adds x w_h^T over `gates` blocks of w_h's columns to `to`, in parts of K that stay in cache.
  void multiply(const Share& mine, Left<Operand> x, int64_t gate, int64_t gates, float* to) {
    const int64_t used = round_up(H, Kind::K_ALIGN);
    // Blocks without padding are one.
    if (used < block() && gates > 1) {
      for (int64_t n = 0; n < gates; ++n) multiply(mine, x.from(0, n * block() / Kind::PACK), gate + n, 1, to);
      return;
    }
    const int64_t from = gate * block(), K = gates * used;
    for (int64_t quad = mine.unit; quad < mine.end; quad += QUAD)
      for (int64_t k = 0; k < K; k += K_PART)
        for_row_tiles<Kind>(mine.rows, [&](int64_t tile, int64_t count) {
          const int64_t row = mine.row + tile;
          Kind::template product<4>(count, x.from(row, k / Kind::PACK),
                                    w_h.all.panel(quad / QUAD) + (from + k) * QUAD, std::min(K_PART, K - k),
                                    to + row * width() + quad, width());
        });
  }

  // Calls what(row, unit, d_h) for every V units of the active rows. d_h is the derivative with respect to h
  // after the step, from the output and from the next step. `what` returns the part of the derivative with
  // respect to h before the step that does not come through the product. In the padding d_h passes unchanged,
  // and the derivatives of the gates are zero.
  template <class What>
  void for_active_rows(const Share& mine, int64_t t, What what) {
    for (int64_t row = mine.row; row < mine.row + mine.rows; ++row) {
      if (inactive(t, row)) {
        for (int64_t gate = 0; gate < gates(); ++gate)
          for (int64_t unit = mine.unit; unit < mine.end; unit += V) put_d_gx(t, row, gate, unit, Vec{});
        continue;
      }
      for (int64_t unit = mine.unit; unit < mine.end; unit += V) {
        float* const d_h = d_h_ + row * width() + unit;
        const Vec d_y = d_ys.at(place(t, row) * H + unit, H - unit);
        store(d_h, what(row, unit, load(d_h) + d_y));
      }
    }
  }

  ALWAYS_INLINE Vec gate(int64_t t, int64_t row, int64_t n, int64_t unit) const {
    return load(kept_gates + (place(t, row) * gates() + n) * H + unit, H - unit);
  }

  ALWAYS_INLINE Vec hidden_before(int64_t t, int64_t row, int64_t unit) const {
    return previous_hidden.at(place(t, row) * H + unit, H - unit);
  }
  ALWAYS_INLINE Vec extra_of(int64_t t, int64_t row, int64_t unit) const {
    return load(extra + place(t, row) * H + unit, H - unit);
  }

  ALWAYS_INLINE void put_d_gx(int64_t t, int64_t row, int64_t gate, int64_t unit, Vec d) {
    store(d_gx + place(t, row) * G() + gate * H + unit, d, H - unit);
    put_operand(row, gate, unit, d);
  }

  void rnn(const Share& mine, int64_t t) {
    for_active_rows(mine, t, [&](int64_t row, int64_t unit, Vec d_h) {
      const Vec h = gate(t, row, 0, unit);
      put_d_gx(t, row, 0, unit,
           cell == RNN_TANH      ? d_h * (1.f - h * h)
           : cell == RNN_SIGMOID ? d_h * h * (1.f - h)
                                 : (h > 0.f ? d_h : Vec{}));
      return Vec{};
    });
  }

  void lstm(const Share& mine, int64_t t) {
    for_active_rows(mine, t, [&](int64_t row, int64_t unit, Vec d_h) {
      const auto peephole = [&](int64_t n) { return load(vectors + n * H + unit, H - unit); };
      const Vec i = gate(t, row, 0, unit);
      const Vec f = gate(t, row, 1, unit);
      const Vec g = gate(t, row, 2, unit);
      const Vec o = gate(t, row, 3, unit);
      const Vec before = extra_of(t, row, unit);
      const Vec tanh_c = tanh(f * before + i * g);
      float* const d_cell = d_c_ + row * width() + unit;
      const Vec d_ao = d_h * tanh_c * o * (1.f - o);
      Vec d_c = load(d_cell) + d_h * o * (1.f - tanh_c * tanh_c);
      if (vectors) d_c += peephole(2) * d_ao;
      const Vec d_ai = d_c * g * i * (1.f - i);
      const Vec d_af = d_c * before * f * (1.f - f);
      put_d_gx(t, row, 0, unit, d_ai);
      put_d_gx(t, row, 1, unit, d_af);
      put_d_gx(t, row, 2, unit, d_c * i * (1.f - g * g));
      put_d_gx(t, row, 3, unit, d_ao);
      d_c *= f;
      if (vectors) d_c += peephole(0) * d_ai + peephole(1) * d_af;
      store(d_cell, d_c);
      return Vec{};
    });
  }

  void gru_after(const Share& mine, int64_t t) {
    for (int64_t row = mine.row; row < mine.row + mine.rows; ++row)
      if (inactive(t, row)) {
        const int64_t bytes = (mine.end - mine.unit) * sizeof(float);
        std::memset(d_q + place(t, row) * H + mine.unit, 0, bytes);
      }
    for_active_rows(mine, t, [&](int64_t row, int64_t unit, Vec d_h) {
      const Vec z = gate(t, row, 0, unit);
      const Vec r = gate(t, row, 1, unit);
      const Vec n = gate(t, row, 2, unit);
      const Vec q = extra_of(t, row, unit);
      const Vec h = hidden_before(t, row, unit);
      const Vec d_an = d_h * (1.f - z) * (1.f - n * n);
      put_d_gx(t, row, 0, unit, d_h * (h - n) * z * (1.f - z));
      put_d_gx(t, row, 1, unit, d_an * q * r * (1.f - r));
      put_d_gx(t, row, 2, unit, d_an);
      store(d_q + place(t, row) * H + unit, d_an * r, H - unit);
      put_operand(row, 2, unit, d_an * r);
      return d_h * z;
    });
  }

  void gru_before(const Share& mine, int64_t t) {
    for_active_rows(mine, t, [&](int64_t row, int64_t unit, Vec d_h) {
      const Vec z = gate(t, row, 0, unit);
      const Vec n = gate(t, row, 2, unit);
      const Vec h = hidden_before(t, row, unit);
      put_d_gx(t, row, 0, unit, d_h * (h - n) * z * (1.f - z));
      put_d_gx(t, row, 2, unit, d_h * (1.f - z) * (1.f - n * n));
      store(d_rh_ + row * width() + unit, Vec{});
      return d_h * z;
    });
  }

  void gru_before_reset(const Share& mine, int64_t t) {
    multiply(mine, operand(t, 2), 2, 1, d_rh_);
    for (int64_t row = mine.row; row < mine.row + mine.rows; ++row) {
      if (inactive(t, row)) continue;
      for (int64_t unit = mine.unit; unit < mine.end; unit += V) {
        const int64_t at = row * width() + unit;
        const Vec r = gate(t, row, 1, unit);
        const Vec d_rh = load(d_rh_ + at);
        const Vec h = hidden_before(t, row, unit);
        put_d_gx(t, row, 1, unit, d_rh * h * r * (1.f - r));
        store(d_h_ + at, load(d_h_ + at) + d_rh * r);
      }
    }
  }
};
