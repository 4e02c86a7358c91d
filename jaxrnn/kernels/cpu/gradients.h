// The gradients outside the recurrence: large products and sums over all N = T B rows.

#pragma once

#include "recurrence.h"

// x [N, K] and columns first .. first + columns of d [N, G] give x^T d [K, columns] and the sums of d's
// columns.
inline void outer(xla::ffi::ThreadPool& pool, const float* x, const float* d, int64_t N, int64_t K,
                  int64_t G, int64_t first, int64_t columns, float* out, float* sums) {
  constexpr int64_t ROWS = 256;  // of d at a time
  each(pool, (columns + QUAD - 1) / QUAD, [&](int64_t panel) {
    const int64_t column = panel * QUAD, wide = std::min<int64_t>(QUAD, columns - column);
    const Scratch part(ROWS * QUAD), total = Scratch::zeros(K * QUAD);
    Vec sum[4] = {};
    for (int64_t n = 0; n < N; n += ROWS) {
      const int64_t rows = std::min(ROWS, N - n);
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t a = 0; a * V < QUAD; ++a) {
          const float* from = d + (n + row) * G + first + column + a * V;
          const Vec value = a * V < wide ? load(from, wide - a * V) : Vec{};
          store(part + row * QUAD + a * V, value);
          sum[a] += value;
        }
      const Left left{x + n * K, 1, K};
      by_tiles(K, [&](int64_t k, int64_t count) {
        product<4>(count, left.from(k), part, rows, total + k * QUAD, QUAD);
      });
    }
    for (int64_t k = 0; k < K; ++k)
      std::memcpy(out + k * columns + column, total + k * QUAD, wide * sizeof(float));
    for (int64_t a = 0; a * V < wide; ++a) store(sums + column + a * V, sum[a], wide - a * V);
  });
}

// d [N, G] and w [D, G] give d w^T [N, D].
inline void back(xla::ffi::ThreadPool& pool, const float* d, const float* w, int64_t N, int64_t G,
                 int64_t D, float* out) {
  constexpr int64_t ROWS = 64;
  const int64_t wide = round_up(D, QUAD);
  const Packed w_t = Packed::transposed(pool, w, G, D);
  each(pool, (N + ROWS - 1) / ROWS, [&](int64_t part) {
    const int64_t n = part * ROWS, rows = std::min(ROWS, N - n);
    const Scratch total = Scratch::zeros(rows * wide);
    const Left left{d + n * G, G};
    for (int64_t k = 0; k < G; k += PART)
      for (int64_t quad = 0; quad < D; quad += QUAD)
        by_tiles(rows, [&](int64_t row, int64_t count) {
          product<4>(count, left.from(row, k), w_t.panel(quad / QUAD) + k * QUAD, std::min(PART, G - k),
                     total + row * wide + quad, wide);
        });
    for (int64_t row = 0; row < rows; ++row)
      std::memcpy(out + (n + row) * D, total + row * wide, D * sizeof(float));
  });
}

// Rows of d [N, G] summed over equal tokens [N]: [rows, G].
inline void sum_equal(xla::ffi::ThreadPool& pool, const int32_t* tokens, const float* d, int64_t N,
                      int64_t G, int64_t rows, float* out) {
  each(pool, (G + QUAD - 1) / QUAD, [&](int64_t panel) {
    const int64_t column = panel * QUAD, wide = std::min<int64_t>(QUAD, G - column);
    for (int64_t row = 0; row < rows; ++row) std::memset(out + row * G + column, 0, wide * sizeof(float));
    for (int64_t n = 0; n < N; ++n) {
      float* to = out + row_of(tokens[n], rows) * G + column;
      const float* from = d + n * G + column;
      for (int64_t j = 0; j < wide; ++j) to[j] += from[j];
    }
  });
}
