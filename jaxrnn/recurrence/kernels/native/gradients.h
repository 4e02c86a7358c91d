// The gradients outside of the recurrence: large products and sums over all N = T B rows.

#pragma once

#include "recurrence.h"

// Computes x^T d [K, columns] and the sums of d's columns, from x [N, K] and the columns first ..
// first + columns of d [N, G]. A block of the result stays in cache, and so do copies of the parts of x and d
// that it is computed from.
inline void outer(Threads& threads, const float* x, const float* d, int64_t N, int64_t K,
                  int64_t G, int64_t first, int64_t columns, float* out, float* sums) {
  // Rows of x and d, and rows of the result, at a time.
  constexpr int64_t ROWS = 128, K_BLOCK = 256;
  // Columns of x at a time, and the stride of their copy. With a power of two as the stride, the rows would
  // share few lines of the cache.
  constexpr int64_t WIDE = 128, STRIDE = WIDE + 16;
  const int64_t quads = (columns + QUAD - 1) / QUAD, tall = (K + K_BLOCK - 1) / K_BLOCK;
  // Width of a block of the result, in quads.
  const int64_t most = std::clamp<int64_t>(quads * tall / (4 * threads.num_threads()), 1, 4);
  const int64_t across = (quads + most - 1) / most;
  parallel_for(threads, across * tall, N * K * columns, [&](int64_t block) {
    const int64_t column = block % across * most * QUAD, k_first = block / across * K_BLOCK;
    const int64_t wide = std::min(most * QUAD, columns - column), width = round_up(wide, QUAD);
    const int64_t k_count = std::min(K_BLOCK, K - k_first);
    const Scratch d_part(ROWS * width), x_part(ROWS * STRIDE), total = Scratch::zeros(k_count * width);
    const Scratch sum = Scratch::zeros(width);
    for (int64_t n = 0; n < N; n += ROWS) {
      const int64_t rows = std::min(ROWS, N - n);
      // Copy each quad of d as a panel [rows, 4, V].
      for (int64_t at = 0; at < width; at += V)
        for (int64_t row = 0; row < rows; ++row) {
          const float* from = d + (n + row) * G + first + column + at;
          const Vec value = at < wide ? load(from, wide - at) : Vec{};
          store(d_part + (at / QUAD * ROWS + row) * QUAD + at % QUAD, value);
          store(sum + at, load(sum + at) + value);
        }
      for (int64_t k = 0; k < k_count; k += WIDE) {
        const int64_t some = std::min(WIDE, k_count - k);
        for (int64_t row = 0; row < rows; ++row)
          std::memcpy(x_part + row * STRIDE, x + (n + row) * K + k_first + k, some * sizeof(float));
        for (int64_t at = 0; at < width; at += QUAD)
          for_row_tiles(some, [&](int64_t tile, int64_t count) {
            product<4>(count, Left{x_part, 1, STRIDE}.from(tile), d_part + at * ROWS, rows,
                       total + (k + tile) * width + at, width);
          });
      }
    }
    for (int64_t k = 0; k < k_count; ++k)
      std::memcpy(out + (k_first + k) * columns + column, total + k * width, wide * sizeof(float));
    if (k_first == 0) std::memcpy(sums + column, sum, wide * sizeof(float));
  });
}

// Computes d w^T [N, D], from d [N, G] and w [D, G].
inline void back(Threads& threads, const float* d, const float* w, int64_t N, int64_t G,
                 int64_t D, float* out) {
  constexpr int64_t ROWS = 64;
  const int64_t wide = round_up(D, QUAD);
  const Packed w_t = Packed::transposed(threads, w, G, D);
  parallel_for(threads, (N + ROWS - 1) / ROWS, N * G * D, [&](int64_t part) {
    const int64_t n = part * ROWS, rows = std::min(ROWS, N - n);
    const Scratch total = Scratch::zeros(rows * wide);
    const Left left{d + n * G, G};
    for (int64_t k = 0; k < G; k += K_PART)
      for (int64_t quad = 0; quad < D; quad += QUAD)
        for_row_tiles(rows, [&](int64_t row, int64_t count) {
          product<4>(count, left.from(row, k), w_t.panel(quad / QUAD) + k * QUAD, std::min(K_PART, G - k),
                     total + row * wide + quad, wide);
        });
    for (int64_t row = 0; row < rows; ++row)
      std::memcpy(out + (n + row) * D, total + row * wide, D * sizeof(float));
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
