// What both passes share: the problem, its division among threads, packed weights, memory.

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "threads.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

// Length of the parts in which a product's K is taken, so that the weights of a part stay in cache.
constexpr int64_t K_PART = 512;

// The equations of a cell, as `_kind` of calls.py numbers them.
enum Kind : int64_t { RNN_TANH, RNN_RELU, RNN_SIGMOID, LSTM, GRU_BEFORE, GRU_AFTER };

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Returns the row of a table for a token: the nearest row if the token is out of range.
inline int64_t table_row(int64_t token, int64_t rows) { return std::clamp<int64_t>(token, 0, rows - 1); }

// The threads of XLA's pool that work on one problem.
class Threads {
 public:
  Threads(xla::ffi::ThreadPool& pool, int64_t count) : pool_(pool), count_(count) {}
  int64_t num_threads() const { return count_; }
  template <class Task>
  void Schedule(Task&& task) {
    pool_.Schedule(std::forward<Task>(task));
  }

 private:
  xla::ffi::ThreadPool& pool_;
  const int64_t count_;
};

struct Problem {
  Kind kind;
  // batch_first: arrays of all steps are [B, T, ...] instead of [T, B, ...].
  bool reverse, batch_first;
  int64_t T, B, H;
  // [T, B]. Null if no row is ever reset, or if all rows are always active.
  const bool *reset = nullptr, *active = nullptr;

  int64_t gates() const { return kind == LSTM ? 4 : kind >= GRU_BEFORE ? 3 : 1; }
  // Floats of a row of states in scratch.
  int64_t width() const { return round_up(H, QUAD); }
  // The place of a step of a row in an array of all steps, and the distance from one row to the next.
  int64_t place(int64_t t, int64_t row) const { return batch_first ? row * T + t : t * B + row; }
  int64_t row_stride() const { return batch_first ? T : 1; }
  bool resets(int64_t t, int64_t row) const { return reset && reset[place(t, row)]; }
  bool inactive(int64_t t, int64_t row) const { return active && !active[place(t, row)]; }
};

// The rows and hidden units that one thread computes. Units begin and end with a quad, or with the last unit.
struct Share {
  int64_t row, rows, unit, end;
};

// Returns the number of parts of the batch that threads run through all of time, independently of each other.
// A core reads all weights at every step, so a part should have several rows.
inline int64_t parts_of_rows(const Threads& threads, const Problem& p) {
  constexpr int64_t FEWEST_ROWS = 4;
  return std::clamp<int64_t>(p.B / FEWEST_ROWS, 1, std::max<int64_t>(1, threads.num_threads()));
}

// Runs what(Share, n, phase) for every step n and every phase of the step in order, over all rows and units. A
// phase may read what any thread wrote in an earlier phase. Each thread has rows of its own. If there are too few
// rows, the threads divide the units instead and wait for each other after each phase.
template <class What>
void run_steps(Threads& threads, const Problem& p, int64_t phases, const What& what) {
  // With fewer weights per thread, waiting for each other takes longer than it saves.
  constexpr int64_t FEWEST_WEIGHTS = 1 << 14;
  const int64_t weights = p.gates() * p.H * p.H, work = p.T * p.B * weights;
  const int64_t parts = parts_of_rows(threads, p), quads = p.width() / QUAD;
  const int64_t members = std::min({threads.num_threads(), quads, weights / FEWEST_WEIGHTS});
  if (parts == 1 && members > 1 && work >= 8 * WORTH_WAKING) {
    run_turns(threads, members, p.T * phases, quads, [&](int64_t turn, int64_t quad) {
      const int64_t from = quad * QUAD;
      what(Share{0, p.B, from, std::min(from + QUAD, p.H)}, turn / phases, turn % phases);
    });
    return;
  }
  parallel_for(threads, parts, work, [&](int64_t part) {
    const int64_t from = p.B * part / parts, to = p.B * (part + 1) / parts;
    for (int64_t n = 0; n < p.T; ++n)
      for (int64_t phase = 0; phase < phases; ++phase) what(Share{from, to - from, 0, p.H}, n, phase);
  });
}

// Asks for huge pages. New memory is mapped page by page at the first access, which costs far less with these.
inline void use_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr int64_t HUGE_PAGE = 1 << 21;
  const int64_t start = reinterpret_cast<int64_t>(data), from = round_up(start, HUGE_PAGE);
  const int64_t length = (start + bytes - from) / HUGE_PAGE * HUGE_PAGE;
  if (length > 0) madvise(reinterpret_cast<void*>(from), length, MADV_HUGEPAGE);
#endif
}

// Temporary floats of one call.
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t floats) {
    const int64_t unit = floats < 1 << 19 ? 64 : 1 << 21, bytes = round_up(floats * 4, unit);
    data_.reset(static_cast<float*>(std::aligned_alloc(unit, bytes)));
    if (!data_ && bytes) throw std::bad_alloc();
    use_huge_pages(data_.get(), bytes);
  }
  static Scratch zeros(int64_t floats) {
    Scratch made(floats);
    std::memset(made, 0, floats * 4);
    return made;
  }
  operator float*() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  std::unique_ptr<float, Free> data_;
};

// Weights in the order in which `tile` reads them: panels [K, A, V], one after another. The A vectors of a
// panel are the same V units of A gates ("gates"), or 4 V units of one gate ("quads").
class Packed {
 public:
  // Packs `gates` blocks of H columns of w [K, ld]. A panel has V units of each gate.
  static Packed gates(Threads& threads, const float* w, int64_t K, int64_t ld, int64_t gates,
                      int64_t H) {
    Packed packed(K, gates * V, (H + V - 1) / V);
    parallel_for(threads, packed.panels_, packed.work(), [&](int64_t panel) {
      float* to = packed.panel(panel);
      const int64_t unit = panel * V;
      for (int64_t k = 0; k < K; ++k)
        for (int64_t gate = 0; gate < gates; ++gate, to += V)
          store(to, load(w + k * ld + gate * H + unit, H - unit));
    });
    return packed;
  }

  // Packs H columns of w [K, ld].
  static Packed quads(Threads& threads, const float* w, int64_t K, int64_t ld, int64_t H) {
    Packed packed(K, QUAD, (H + QUAD - 1) / QUAD);
    parallel_for(threads, packed.panels_, packed.work(), [&](int64_t panel) {
      float* to = packed.panel(panel);
      for (int64_t k = 0; k < K; ++k)
        for (int64_t unit = panel * QUAD; unit < (panel + 1) * QUAD; unit += V, to += V)
          store(to, unit < H ? load(w + k * ld + unit, H - unit) : Vec{});
    });
    return packed;
  }

  // Packs the transpose of w [H, K].
  static Packed transposed(Threads& threads, const float* w, int64_t K, int64_t H) {
    // Columns of w that are copied at a time, so that what is written stays in cache.
    constexpr int64_t BLOCK = 16;
    Packed packed(K, QUAD, (H + QUAD - 1) / QUAD);
    parallel_for(threads, packed.panels_, packed.work(), [&](int64_t panel) {
      float* to = packed.panel(panel);
      const int64_t units = std::min<int64_t>(QUAD, H - panel * QUAD);
      if (units < QUAD) std::memset(to, 0, K * QUAD * sizeof(float));
      for (int64_t first = 0; first < K; first += BLOCK)
        for (int64_t unit = 0; unit < units; ++unit)
          for (int64_t k = first; k < std::min(first + BLOCK, K); ++k)
            to[k * QUAD + unit] = w[(panel * QUAD + unit) * K + k];
    });
    return packed;
  }

  Packed() = default;
  float* panel(int64_t n) const { return data_ + n * K_ * wide_; }

 private:
  Packed(int64_t K, int64_t wide, int64_t panels)
      : K_(K), wide_(wide), panels_(panels), data_(K * wide * panels) {}
  int64_t work() const { return COPY * K_ * wide_ * panels_; }

  // The cost of copying a number, in multiply-adds.
  static constexpr int64_t COPY = 4;
  int64_t K_ = 0, wide_ = 0, panels_ = 0;
  Scratch data_;
};
