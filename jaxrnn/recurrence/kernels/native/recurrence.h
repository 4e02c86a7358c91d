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
#include "tiles.h"
#include "xla/ffi/api/ffi.h"

// Length of the parts in which a product's K is taken, so that the weights of a part stay in cache.
constexpr int64_t K_PART = 1024;

// The equations of a cell, as `_cell` of calls.py numbers them.
enum Cell : int64_t { RNN_TANH, RNN_RELU, RNN_SIGMOID, LSTM, GRU_BEFORE, GRU_AFTER };

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
  Cell cell;
  // batch_first: arrays of all steps are [B, T, ...] instead of [T, B, ...].
  bool reverse, batch_first;
  int64_t T, B, H;
  // [T, B]. Null if no row is ever reset, or if all rows are always active.
  const bool *reset = nullptr, *active = nullptr;

  int64_t gates() const { return cell == LSTM ? 4 : cell >= GRU_BEFORE ? 3 : 1; }
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
template <class Kind>
int64_t parts_of_rows(const Threads& threads, const Problem& p) {
  return std::clamp<int64_t>(p.B / Kind::FEWEST_ROWS, 1, std::max<int64_t>(1, threads.num_threads()));
}

// Runs what(Share, n, phase) for every step n and every phase of the step in order, over all rows and units. A
// phase may read what any thread wrote in an earlier phase. Each thread has rows of its own. If there are too few
// rows, the threads divide the units instead and wait for each other after each phase.
template <class Kind, class What>
void run_steps(Threads& threads, const Problem& p, int64_t phases, const What& what) {
  // With fewer weights per thread, waiting for each other takes longer than it saves; and so does waking a thread
  // for fewer weights in all steps.
  constexpr int64_t FEWEST_WEIGHTS = 1 << 14, WORTH_SHARING = 1 << 20;
  const int64_t weights = p.gates() * p.H * p.H, work = p.T * p.B * weights;
  const int64_t parts = parts_of_rows<Kind>(threads, p), quads = p.width() / QUAD;
  const int64_t members = std::min({threads.num_threads(), quads, weights / FEWEST_WEIGHTS});
  if (parts == 1 && members > 1 && p.T * weights >= WORTH_SHARING) {
    run_turns(threads, members, p.T * phases, quads, [&](int64_t turn, int64_t quad) {
      const typename Kind::Session session;
      const int64_t from = quad * QUAD;
      what(Share{0, p.B, from, std::min(from + QUAD, p.H)}, turn / phases, turn % phases);
    });
    return;
  }
  parallel_for(threads, parts, work, [&](int64_t part) {
    const typename Kind::Session session;
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

// Temporary numbers of one call.
template <class Number = float>
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t count) {
    const int64_t small = 1 << 21, unit = count * size < small ? 64 : small, bytes = round_up(count * size, unit);
    data_.reset(static_cast<Number*>(std::aligned_alloc(unit, bytes)));
    if (!data_ && bytes) throw std::bad_alloc();
    use_huge_pages(data_.get(), bytes);
  }
  static Scratch zeros(int64_t count) {
    Scratch made(count);
    std::memset(made, 0, count * size);
    return made;
  }
  operator Number*() const { return data_.get(); }

 private:
  struct Free {
    void operator()(Number* data) const { std::free(data); }
  };
  static constexpr int64_t size = sizeof(Number);
  std::unique_ptr<Number, Free> data_;
};

// Rows of left operands, with zeros after the numbers of a row.
template <class Kind>
class Operands {
 public:
  using Operand = typename Kind::Operand;

  Operands() = default;
  Operands(int64_t rows, int64_t length)
      : stride_(stride(length)), data_(Scratch<Operand>::zeros(rows * stride_)) {}

  // Rounds `length` numbers of x, from a place on, to a row.
  void put_row(int64_t row, Series x, int64_t place, int64_t length) {
    for (int64_t n = 0; n < length; n += V) Kind::put(at(row, n), x.at(place + n, length - n), length - n);
  }
  Operand* at(int64_t row, int64_t n) const { return data_ + row * stride_ + n; }
  Left<Operand> left(int64_t row, int64_t n = 0) const { return {at(row, n), stride_, Kind::PACK}; }

 private:
  // With a power of two, the rows would share few lines of the cache.
  static int64_t stride(int64_t length) { return round_up(length, QUAD) + 32; }

  int64_t stride_ = 0;
  Scratch<Operand> data_;
};

// Weights in the order in which `product` reads them: panels [K / PACK, A, V, PACK], one after another. The A
// vectors of a panel are the same V units of A gates ("gates"), or 4 V units of one gate ("quads"). K is padded
// with zeros. An object describes weights that lie in memory, or are to be packed there.
template <class Kind>
class Packed {
 public:
  using Weight = typename Kind::Weight;
  static constexpr int64_t PACK = Kind::PACK;

  Packed() = default;
  static Packed gates(Weight* at, int64_t K, int64_t gates, int64_t H) {
    return Packed(at, K, gates * V, (H + V - 1) / V);
  }
  static Packed quads(Weight* at, int64_t K, int64_t H) { return Packed(at, K, QUAD, (H + QUAD - 1) / QUAD); }

  // The K of a product, with its padding.
  int64_t length() const { return round_up(K_, Kind::K_ALIGN); }
  Weight* panel(int64_t n) const { return at_ + n * stride_ * wide_; }
  Weight* end() const { return panel(panels_); }

  // Packs blocks of H columns of w [K, ld], one for each gate of a panel.
  void pack_gates(Threads& threads, const Weight* w, int64_t ld, int64_t H) const {
    parallel_for(threads, panels_, work(), [&](int64_t panel) {
      Weight* to = this->panel(panel);
      const int64_t unit = panel * V;
      for (int64_t k = 0; k < stride_; k += PACK)
        for (int64_t gate = 0; gate < wide_ / V; ++gate, to += V * PACK)
          pack(to, w + gate * H + unit, ld, k, K_, H - unit);
    });
  }

  // Packs H columns of w [K, ld].
  void pack_quads(Threads& threads, const Weight* w, int64_t ld, int64_t H) const {
    parallel_for(threads, panels_, work(), [&](int64_t panel) {
      Weight* to = this->panel(panel);
      for (int64_t k = 0; k < stride_; k += PACK)
        for (int64_t unit = panel * QUAD; unit < (panel + 1) * QUAD; unit += V, to += V * PACK)
          pack(to, w + unit, ld, k, unit < H ? K_ : 0, H - unit);
    });
  }

  // Packs the transpose of w [H, blocks * K] in quads. K is padded in each block.
  void pack_transposed(Threads& threads, const Weight* w, int64_t blocks, int64_t K, int64_t H) const {
    // Columns of w that are copied at a time, so that what is written stays in cache.
    constexpr int64_t COLUMNS = 16 * PACK;
    const int64_t padded = stride_ / blocks;
    parallel_for(threads, panels_, work(), [&](int64_t panel) {
      Weight* to = this->panel(panel);
      const int64_t units = std::min<int64_t>(QUAD, H - panel * QUAD);
      if (units < QUAD || K < padded) std::memset(to, 0, stride_ * QUAD * sizeof(Weight));
      for (int64_t block = 0; block < blocks; ++block, to += padded * QUAD)
        for (int64_t first = 0; first < K; first += COLUMNS)
          for (int64_t unit = 0; unit < units; ++unit) {
            const Weight* from = w + ((panel * QUAD + unit) * blocks + block) * K;
            for (int64_t k = first; k < std::min(first + COLUMNS, K); k += PACK)
              std::memcpy(to + k * QUAD + unit * PACK, from + k, std::min(PACK, K - k) * sizeof(Weight));
          }
    });
  }

 private:
  Packed(Weight* at, int64_t K, int64_t wide, int64_t panels)
      : at_(at), K_(K), stride_(round_up(K, Kind::K_STRIDE)), wide_(wide), panels_(panels) {}
  int64_t work() const { return COPY * stride_ * wide_ * panels_; }

  // Packs the first `units` of V columns of w [K, ld], in the rows k .. k + PACK - 1.
  static void pack(Weight* to, const Weight* w, int64_t ld, int64_t k, int64_t K, int64_t units) {
    const auto row = [&](int64_t n) { return n < K ? load(w + n * ld, units) : decltype(load(w, units)){}; };
    const auto lanes = Kind::pack(row(k), row(k + PACK - 1));
    std::memcpy(to, &lanes, sizeof lanes);
  }

  // The cost of copying a number, in multiply-adds.
  static constexpr int64_t COPY = 4;
  Weight* at_ = nullptr;
  int64_t K_ = 0, stride_ = 0, wide_ = 0, panels_ = 0;
};

// The forms in which weights are packed, as calls.py numbers them.
enum Form : int64_t {
  // w_h [H, G] for the forward pass.
  RECURRENT,
  // w_x [D, G] for the forward pass.
  INPUT,
  // The transpose of w_h or w_x, whose columns are blocks of H, for the products of the backward pass.
  TRANSPOSED,
};

// Packed weights of a cell. A GRU that resets before the product has its candidate's recurrent weights apart.
template <class Kind>
struct PackedCell {
  using Weight = typename Kind::Weight;

  PackedCell() = default;
  // K: rows of the weights.
  PackedCell(Weight* at, Form form, Cell cell, int64_t gates, int64_t K, int64_t H) {
    apart = form == RECURRENT && cell == GRU_BEFORE;
    if (form == TRANSPOSED) {
      all = Packed<Kind>::quads(at, gates * round_up(H, Kind::K_STRIDE), K);
    } else if (gates == 1) {
      all = Packed<Kind>::quads(at, K, H);
    } else {
      all = Packed<Kind>::gates(at, K, gates - apart, H);
      if (apart) candidate = Packed<Kind>::quads(all.end(), K, H);
    }
  }

  void pack(Threads& threads, const Weight* w, Form form, int64_t gates, int64_t K, int64_t H) const {
    if (form == TRANSPOSED) all.pack_transposed(threads, w, gates, H, K);
    else if (gates == 1) all.pack_quads(threads, w, H, H);
    else all.pack_gates(threads, w, gates * H, H);
    if (apart) candidate.pack_quads(threads, w + (gates - 1) * H, gates * H, H);
  }

  Packed<Kind> all, candidate;
  bool apart = false;
};

// The numbers of packed weights of K rows and gates of H columns, or a few more.
inline int64_t packed_size(bool narrow, Form form, int64_t gates, int64_t K, int64_t H) {
  constexpr int64_t UNITS = 64;
  const int64_t stride = narrow ? Pairs::K_STRIDE : Floats::K_STRIDE;
  return form == TRANSPOSED ? gates * round_up(H, stride) * round_up(K, UNITS)
                            : gates * round_up(K, stride) * round_up(H, UNITS);
}
