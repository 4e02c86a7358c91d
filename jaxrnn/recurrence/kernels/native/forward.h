// The forward pass. Its equations are in jaxrnn/recurrence/equations.py.

#pragma once

#include "recurrence.h"

template <class Kind>
class Forward : public Problem {
 public:
  using Operand = typename Kind::Operand;
  using Weight = typename Kind::Weight;

  // The inputs, in one of three forms: gx [T, B, G]; rows of a table [rows_of_table, G] by tokens [T, B];
  // xs [T, B, D] with packed w_x [D, G], and b [G]. These shapes, and all others here, are those without
  // batch_first.
  const float* gx = nullptr;
  const int32_t* tokens = nullptr;
  const float *table = nullptr, *b = nullptr;
  Series xs;
  PackedCell<Kind> w_x;
  int64_t rows_of_table = 0, D = 0;
  // Packed w_h [H, G]; peepholes [3, H] or b_h [H], or null.
  PackedCell<Kind> w_h;
  const float* vectors;
  // The state before the first step [B, H].
  const float *h_first, *c_first;
  // The outputs [T, B, H] and the state after the last step [B, H].
  Series ys;
  float *h_last, *c_last;
  // What the backward pass needs, or null. previous_hidden [T, B, H]: h before each step. kept_gates [T, B, G]:
  // the activated gates; of a plain RNN, h itself. extra [T, B, H]: of an LSTM, c before each step; of a GRU,
  // r * h or q = h w_n + b_h.
  Series previous_hidden;
  float *kept_gates = nullptr, *extra = nullptr;

  void run(Threads& threads) {
    const int64_t size = B * width();
    for (Scratch<>* scratch : {&h_[0], &h_[1], &c_, &z_}) *scratch = Scratch<>::zeros(size);
    if (Kind::NARROW)
      for (Operands<Kind>& h : operand_) h = Operands<Kind>(B, H);
    if (cell == GRU_BEFORE) rh_ = Operands<Kind>(B, H);
    if (xs) {
      // If a step has few rows, several steps are projected at once: their rows are one after the other.
      steps_at_once_ = parts_of_rows<Kind>(threads, *this) > 1 ? 1 : std::clamp<int64_t>(32 / B, 1, T);
      projected_ = Scratch<>(steps_at_once_ * B * gates() * width());
      if (Kind::NARROW) round_inputs(threads);
    }
    for (int64_t row = 0; row < B; ++row) {
      if (resets(time(0), row)) continue;
      if (Kind::NARROW) operand_[0].put_row(row, h_first, row * H, H);
      std::memcpy(h_[0] + row * width(), h_first + row * H, H * sizeof(float));
      if (cell == LSTM) std::memcpy(c_ + row * width(), c_first + row * H, H * sizeof(float));
    }
    run_steps<Kind>(threads, *this, cell == GRU_BEFORE ? 2 : 1,
              [this](const Share& mine, int64_t n, int64_t phase) { run_phase(mine, n, phase); });
    for (int64_t row = 0; row < B; ++row) {
      std::memcpy(h_last + row * H, h_[T % 2] + row * width(), H * sizeof(float));
      if (cell == LSTM) std::memcpy(c_last + row * H, c_ + row * width(), H * sizeof(float));
    }
  }

 private:
  struct Step {
    // The time of the step, and of the step that is run after it; -1 after the last step.
    int64_t t, next;
    // h [B, width] before the step, and as an operand.
    const float* old;
    Left<Operand> operand;
    // h after the step, and as an operand.
    float* now;
    Operands<Kind>* rounded;
    // gx of all rows [B, gates * width], if it is computed here.
    const float* projected;
  };

  Scratch<> h_[2], c_, z_, projected_;
  // h, r * h and xs as operands. `Floats` multiplies h and xs as they are.
  Operands<Kind> operand_[2], rh_, xs_;
  // Steps that are projected together.
  int64_t steps_at_once_ = 1;

  int64_t time(int64_t n) const { return n == T ? -1 : reverse ? T - 1 - n : n; }

  void run_phase(const Share& mine, int64_t n, int64_t phase) {
    const int64_t at = n % steps_at_once_, steps = std::min(steps_at_once_, T - (n - at));
    if (xs && at == 0 && phase == 0) project(mine, std::min(time(n), time(n + steps - 1)), steps);
    const float* const gx_here = projected_ + (reverse ? steps - 1 - at : at) * B * gates() * width();
    const Step step{time(n), time(n + 1), h_[n % 2], operand(n % 2), h_[(n + 1) % 2],
                    &operand_[(n + 1) % 2], gx_here};
    if (cell == LSTM) lstm(mine, step);
    else if (cell == GRU_AFTER) gru_after(mine, step);
    else if (cell != GRU_BEFORE) rnn(mine, step);
    else if (phase == 0) gru_before_gates(mine, step);
    else gru_before_hidden(mine, step);
  }

  Left<Operand> operand(int64_t n) const {
    if constexpr (Kind::NARROW) return operand_[n].left(0);
    else return {h_[n], width(), 1};
  }

  void round_inputs(Threads& threads) {
    constexpr int64_t ROWS = 64;
    xs_ = Operands<Kind>(T * B, D);
    parallel_for(threads, (T * B + ROWS - 1) / ROWS, T * B * D, [&](int64_t part) {
      for (int64_t row = part * ROWS; row < std::min((part + 1) * ROWS, T * B); ++row)
        xs_.put_row(row, xs, row * D, D);
    });
  }

  // Rows of xs that are `by_row` rows apart.
  Left<Operand> inputs(int64_t row, int64_t by_row) const {
    if constexpr (Kind::NARROW) {
      const Left<Operand> all = xs_.left(row);
      return {all.data, all.by_row * by_row, all.by_step};
    } else {
      return {xs.floats() + row * D, by_row * D, 1};
    }
  }

  // Computes gx = x w_x + b of `steps` steps from time t, for the rows and units of this share.
  void project(const Share& mine, int64_t t, int64_t steps) {
    // Vectors and units of a panel.
    const int64_t vectors = gates() == 1 ? 4 : gates();
    const int64_t units = gates() == 1 ? QUAD : V;
    const int64_t stride = gates() * width();
    for (int64_t unit = mine.unit; unit < mine.end; unit += units) {
      const Weight* w = w_x.all.panel(unit / units);
      const auto project_rows = [&](int64_t rows, Left<Operand> x, float* to, int64_t ldo) {
        for_row_tiles<Kind>(rows, [&](int64_t first, int64_t count) {
          float* out = to + first * ldo + unit * gates();
          for (int64_t a = 0; a < vectors; ++a) {
            const int64_t gate = gates() == 1 ? 0 : a, at = gates() == 1 ? unit + a * V : unit;
            const Vec bias = at < H ? load(b + gate * H + at, H - at) : Vec{};
            for (int64_t row = 0; row < count; ++row) store(out + row * ldo + a * V, bias);
          }
          if (vectors == 4) Kind::template product<4>(count, x.from(first), w, w_x.all.length(), out, ldo);
          else Kind::template product<3>(count, x.from(first), w, w_x.all.length(), out, ldo);
        });
      };
      if (batch_first && steps > 1) {
        for (int64_t row = mine.row; row < mine.row + mine.rows; ++row)
          project_rows(steps, inputs(place(t, row), 1), projected_ + row * stride, B * stride);
      } else {
        // Several steps are projected only where a share has all rows, so that they follow each other.
        const auto x = inputs(place(t, mine.row), row_stride());
        project_rows(steps * mine.rows, x, projected_ + mine.row * stride, stride);
      }
    }
  }

  ALWAYS_INLINE Vec input(const Step& step, int64_t row, int64_t gate, int64_t unit) const {
    if (xs) return load(step.projected + (row * width() + unit) * gates() + gate * V);
    const float* from = gx + place(step.t, row) * gates() * H;
    if (tokens) from = table + table_row(tokens[place(step.t, row)], rows_of_table) * gates() * H;
    return load(from + gate * H + unit, H - unit);
  }

  ALWAYS_INLINE void keep(const Step& step, int64_t row, int64_t unit, int64_t gate, Vec x) {
    if (kept_gates) store(kept_gates + (place(step.t, row) * gates() + gate) * H + unit, x, H - unit);
  }

  ALWAYS_INLINE void keep_extra(const Step& step, int64_t row, int64_t unit, Vec x) {
    if (extra) store(extra + place(step.t, row) * H + unit, x, H - unit);
  }

  // Writes the row's output, and its state for the next step: h, or the old state in the padding, or zeros if
  // the next step resets the row.
  ALWAYS_INLINE void put_hidden(const Step& step, int64_t row, int64_t unit, Vec h) {
    const int64_t to = place(step.t, row) * H + unit;
    const Vec old = load(step.old + row * width() + unit);
    const bool stand = inactive(step.t, row);
    ys.put(to, stand ? Vec{} : h, H - unit);
    if (previous_hidden) previous_hidden.put(to, old, H - unit);
    const Vec next = resets_next(step, row) ? Vec{} : stand ? old : h;
    store(step.now + row * width() + unit, next);
    if constexpr (Kind::NARROW) Kind::put(step.rounded->at(row, unit), next);
  }

  bool resets_next(const Step& step, int64_t row) const { return step.next >= 0 && resets(step.next, row); }

  // Calls each of the stages for every V units, as stage(row, unit, sums) with sums [A, V] = x w of A gates, in
  // which it may leave results for the next stage. A stage runs for some rows before the next one does, so that
  // the processor overlaps their activation functions, each of which is a long chain of operations.
  template <int A, class... Stages>
  void multiply(const Share& mine, Left<Operand> x, const Packed<Kind>& w, const Stages&... stages) {
    for (int64_t unit = mine.unit; unit < mine.end; unit += V) {
      for_row_tiles<Kind>(mine.rows, [&](int64_t first, int64_t count) {
        alignas(64) float sums[Kind::MAX_ROWS * A * V];
        const int64_t row = mine.row + first;
        std::memset(sums, 0, count * A * V * sizeof(float));
        Kind::template product<A>(count, x.from(row), w.panel(unit / V), w.length(), sums, A * V);
        const auto run = [&](const auto& stage) {
          for (int64_t r = 0; r < count; ++r) stage(row + r, unit, sums + r * A * V);
        };
        (run(stages), ...);
      });
    }
  }

  // Calls what(row, unit, sum) for every V units, with sum [V] = x w of one gate.
  template <class What>
  void multiply_quads(const Share& mine, Left<Operand> x, const Packed<Kind>& w, What what) {
    for (int64_t quad = mine.unit; quad < mine.end; quad += QUAD) {
      for_row_tiles<Kind>(mine.rows, [&](int64_t first, int64_t count) {
        alignas(64) float sums[Kind::MAX_ROWS * QUAD];
        const int64_t row = mine.row + first;
        std::memset(sums, 0, count * QUAD * sizeof(float));
        Kind::template product<4>(count, x.from(row), w.panel(quad / QUAD), w.length(), sums, QUAD);
        for (int64_t r = 0; r < count; ++r)
          for (int64_t unit = quad; unit < std::min(quad + QUAD, mine.end); unit += V)
            what(row + r, unit, load(sums + r * QUAD + unit - quad));
      });
    }
  }

  void rnn(const Share& mine, const Step& step) {
    multiply_quads(mine, step.operand, w_h.all, [&](int64_t row, int64_t unit, Vec sum) {
      const Vec a = input(step, row, 0, unit) + sum;
      const Vec h = cell == RNN_TANH ? tanh(a) : cell == RNN_SIGMOID ? sigmoid(a) : a < 0.f ? Vec{} : a;
      keep(step, row, unit, 0, h);
      put_hidden(step, row, unit, h);
    });
  }

  void lstm(const Share& mine, const Step& step) {
    const auto peephole = [&](int64_t n, int64_t unit) { return load(vectors + n * H + unit, H - unit); };
    const auto gates = [&](int64_t row, int64_t unit, float* sums) {
      const auto gate = [&](int64_t n) { return load(sums + n * V) + input(step, row, n, unit); };
      Vec a_i = gate(0), a_f = gate(1), o = gate(3);
      if (vectors) {
        const Vec before = load(c_ + row * width() + unit);
        a_i += peephole(0, unit) * before;
        a_f += peephole(1, unit) * before;
      } else {
        o = sigmoid(o);
      }
      store(sums, sigmoid(a_i));
      store(sums + V, sigmoid(a_f));
      store(sums + 2 * V, tanh(gate(2)));
      store(sums + 3 * V, o);
    };
    const auto cell = [&](int64_t row, int64_t unit, float* sums) {
      float* const c_here = c_ + row * width() + unit;
      const Vec before = load(c_here), i = load(sums), f = load(sums + V), g = load(sums + 2 * V);
      const Vec c = f * before + i * g;
      Vec o = load(sums + 3 * V);
      if (vectors) o = sigmoid(o + peephole(2, unit) * c);
      keep(step, row, unit, 0, i);
      keep(step, row, unit, 1, f);
      keep(step, row, unit, 2, g);
      keep(step, row, unit, 3, o);
      keep_extra(step, row, unit, before);
      store(c_here, resets_next(step, row) ? Vec{} : inactive(step.t, row) ? before : c);
      store(sums, c);
      store(sums + V, o);
    };
    const auto hidden = [&](int64_t row, int64_t unit, float* sums) {
      put_hidden(step, row, unit, load(sums + V) * tanh(load(sums)));
    };
    multiply<4>(mine, step.operand, w_h.all, gates, cell, hidden);
  }

  void gru_after(const Share& mine, const Step& step) {
    const auto gates = [&](int64_t row, int64_t unit, float* sums) {
      store(sums, sigmoid(load(sums) + input(step, row, 0, unit)));
      store(sums + V, sigmoid(load(sums + V) + input(step, row, 1, unit)));
    };
    const auto hidden = [&](int64_t row, int64_t unit, float* sums) {
      const Vec z = load(sums), r = load(sums + V);
      const Vec q = load(sums + 2 * V) + load(vectors + unit, H - unit);
      const Vec n = tanh(input(step, row, 2, unit) + r * q);
      keep(step, row, unit, 0, z);
      keep(step, row, unit, 1, r);
      keep(step, row, unit, 2, n);
      keep_extra(step, row, unit, q);
      put_hidden(step, row, unit, (1.f - z) * n + z * load(step.old + row * width() + unit));
    };
    multiply<3>(mine, step.operand, w_h.all, gates, hidden);
  }

  void gru_before_gates(const Share& mine, const Step& step) {
    multiply<2>(mine, step.operand, w_h.all, [&](int64_t row, int64_t unit, const float* sums) {
      const Vec r = sigmoid(load(sums + V) + input(step, row, 1, unit));
      const int64_t at = row * width() + unit;
      const Vec rh = r * load(step.old + at);
      store(z_ + at, sigmoid(load(sums) + input(step, row, 0, unit)));
      Kind::put(rh_.at(row, unit), rh);
      keep_extra(step, row, unit, rh);
      keep(step, row, unit, 1, r);
    });
  }

  void gru_before_hidden(const Share& mine, const Step& step) {
    multiply_quads(mine, rh_.left(0), w_h.candidate, [&](int64_t row, int64_t unit, Vec sum) {
      const Vec z = load(z_ + row * width() + unit);
      const Vec n = tanh(input(step, row, 2, unit) + sum);
      const Vec h = (1.f - z) * n + z * load(step.old + row * width() + unit);
      keep(step, row, unit, 0, z);
      keep(step, row, unit, 2, n);
      put_hidden(step, row, unit, h);
    });
  }
};
