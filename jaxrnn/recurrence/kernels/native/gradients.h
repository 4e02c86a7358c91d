// The gradients outside of the recurrence: large products and sums over all N = T B rows.

#pragma once

#include "recurrence.h"

// x^T as left operands of a product with d, from x [N, K].
template <class Kind>
class Transposed {
 public:
  using Operand = typename Kind::Operand;

  Transposed(Threads& threads, Series x, int64_t N, int64_t K) : x_(x), K_(K) {
    if constexpr (Kind::NARROW) {
      operands_ = Operands<Kind>(K, N);
      parallel_for(threads, (K + V - 1) / V, 4 * N * K, [&](int64_t part) {
        const int64_t first = part * V, some = std::min<int64_t>(V, K - first);
        float block[V][V];
        for (int64_t n = 0; n < N; n += V) {
          const int64_t rows = std::min<int64_t>(V, N - n);
          for (int64_t row = 0; row < rows; ++row) {
            const Vec values = x.at((n + row) * K + first, some);
            for (int64_t k = 0; k < some; ++k) block[k][row] = values[k];
          }
          for (int64_t k = 0; k < some; ++k) Kind::put(operands_.at(first + k, n), load(block[k]), rows);
        }
      });
    }
  }

  // Returns `some` of the K rows from k on, and `rows` of the N columns from n on. `Floats` copies them to `part`,
  // because rows of x that are a power of two long would share few lines of the cache.
  Left<Operand> left(int64_t k, int64_t some, int64_t n, int64_t rows, float* part) const {
    if constexpr (Kind::NARROW) {
      return operands_.left(k, n);
    } else {
      for (int64_t row = 0; row < rows; ++row)
        std::memcpy(part + row * STRIDE, x_.floats() + (n + row) * K_ + k, some * sizeof(float));
      return {part, 1, STRIDE};
    }
  }

  // The most of the K rows at a time, and the stride of their copies.
  static constexpr int64_t WIDE = 128, STRIDE = WIDE + 16;

 private:
  const Series x_;
  const int64_t K_;
  Operands<Kind> operands_;
};

// Computes x^T d [K, columns] and the sums of d's columns, from x [N, K] and the columns first ..
// first + columns of d [N, G]. A block of the result stays in cache, and so do copies of the parts of x and d
// that it is computed from.
template <class Kind>
void outer(Threads& threads, Series x, const float* d, int64_t N, int64_t K, int64_t G, int64_t first,
           int64_t columns, float* out, float* sums) {
  constexpr int64_t PACK = Kind::PACK;
  // Rows of x and d, and rows of the result, at a time.
  constexpr int64_t ROWS = 128 * PACK, K_BLOCK = 256;
  const Transposed<Kind> transposed(threads, x, N, K);
  const int64_t quads = (columns + QUAD - 1) / QUAD, tall = (K + K_BLOCK - 1) / K_BLOCK;
  // Width of a block of the result, in quads.
  const int64_t most = std::clamp<int64_t>(quads * tall / (4 * threads.num_threads()), 1, 4);
  const int64_t across = (quads + most - 1) / most;
  parallel_for(threads, across * tall, N * K * columns, [&](int64_t block) {
    const typename Kind::Session session;
    const int64_t column = block % across * most * QUAD, k_first = block / across * K_BLOCK;
    const int64_t wide = std::min(most * QUAD, columns - column), width = round_up(wide, QUAD);
    const int64_t k_count = std::min(K_BLOCK, K - k_first);
    const Scratch<> total = Scratch<>::zeros(k_count * width), sum = Scratch<>::zeros(width);
    const Scratch<> x_part(Kind::NARROW ? 0 : ROWS * Transposed<Kind>::STRIDE);
    const Scratch<typename Kind::Weight> d_part(ROWS * width);
    for (int64_t n = 0; n < N; n += ROWS) {
      const int64_t rows = std::min(ROWS, N - n), padded = round_up(rows, Kind::K_ALIGN);
      // Pack each quad of d as a panel [rows / PACK, 4, V, PACK].
      for (int64_t at = 0; at < width; at += V) {
        Vec total_of_column = load(sum + at);
        for (int64_t row = 0; row < padded; row += PACK) {
          const auto value = [&](int64_t row) {
            const float* from = d + (n + row) * G + first + column + at;
            return row < rows && at < wide ? load(from, wide - at) : Vec{};
          };
          const Vec x = value(row), y = PACK > 1 ? value(row + 1) : Vec{};
          const auto lanes = Kind::pack(x, y);
          std::memcpy(d_part + at / QUAD * QUAD * ROWS + row * QUAD + at % QUAD * PACK, &lanes, sizeof lanes);
          total_of_column += x + y;
        }
        store(sum + at, total_of_column);
      }
      for (int64_t k = 0; k < k_count; k += Transposed<Kind>::WIDE) {
        const int64_t some = std::min(Transposed<Kind>::WIDE, k_count - k);
        const auto left = transposed.left(k_first + k, some, n, rows, x_part);
        for (int64_t at = 0; at < width; at += QUAD)
          for_row_tiles<Kind>(some, [&](int64_t tile, int64_t count) {
            Kind::template product<4>(count, left.from(tile), d_part + at * ROWS, padded,
                                      total + (k + tile) * width + at, width);
          });
      }
    }
    for (int64_t k = 0; k < k_count; ++k)
      std::memcpy(out + (k_first + k) * columns + column, total + k * width, wide * sizeof(float));
    if (k_first == 0) std::memcpy(sums + column, sum, wide * sizeof(float));
  });
}

// Computes d w^T [N, D], from d [N, G] and the packed transpose of w [D, G].
template <class Kind>
void back(Threads& threads, const float* d, const Packed<Kind>& w_t, int64_t N, int64_t G, int64_t D, Series out) {
  constexpr int64_t ROWS = 64;
  const int64_t wide = round_up(D, QUAD);
  parallel_for(threads, (N + ROWS - 1) / ROWS, N * G * D, [&](int64_t part) {
    const typename Kind::Session session;
    const int64_t n = part * ROWS, rows = std::min(ROWS, N - n);
    const auto total = Scratch<>::zeros(rows * wide);
    Operands<Kind> rounded;
    Left<typename Kind::Operand> left;
    if constexpr (Kind::NARROW) {
      rounded = Operands<Kind>(rows, G);
      for (int64_t row = 0; row < rows; ++row) rounded.put_row(row, d, (n + row) * G, G);
      left = rounded.left(0);
    } else {
      left = {d + n * G, G, 1};
    }
    for (int64_t k = 0; k < w_t.length(); k += K_PART)
      for (int64_t quad = 0; quad < D; quad += QUAD)
        for_row_tiles<Kind>(rows, [&](int64_t row, int64_t count) {
          Kind::template product<4>(count, left.from(row, k / Kind::PACK), w_t.panel(quad / QUAD) + k * QUAD,
                                    std::min(K_PART, w_t.length() - k), total + row * wide + quad, wide);
        });
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t at = 0; at < D; at += V) out.put((n + row) * D + at, load(total + row * wide + at), D - at);
  });
}

// Adds up the rows of d [N, G] with equal tokens [N], to [rows, G].
inline void sum_equal(Threads& threads, const int32_t* tokens, const float* d, int64_t N,
                      int64_t G, int64_t rows, float* out) {
  parallel_for(threads, (G + QUAD - 1) / QUAD, N * G, [&](int64_t panel) {
    const int64_t column = panel * QUAD, wide = std::min<int64_t>(QUAD, G - column);
    for (int64_t row = 0; row < rows; ++row) std::memset(out + row * G + column, 0, wide * sizeof(float));
    for (int64_t n = 0; n < N; ++n) {
      float* to = out + table_row(tokens[n], rows) * G + column;
      const float* from = d + n * G + column;
      for (int64_t j = 0; j < wide; ++j) to[j] += from[j];
    }
  });
}
