// Vectors of V floats, and the activation functions on them.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(JAXRNN_EMULATE_TILES)
constexpr int V = 16;
// Most rows of a tile: with 4 vectors each, 24 of 32 registers hold sums.
constexpr int64_t MAX_TILE_ROWS = 6;
#elif defined(__AVX__)
constexpr int V = 8;
// 12 of 16 registers hold sums.
constexpr int64_t MAX_TILE_ROWS = 3;
#elif defined(__ARM_NEON)
constexpr int V = 4;
constexpr int64_t MAX_TILE_ROWS = 6;
#else
constexpr int V = 4;
constexpr int64_t MAX_TILE_ROWS = 3;
#endif
constexpr int QUAD = 4 * V;

typedef float Vec __attribute__((vector_size(V * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(V * 4), aligned(4), may_alias));

inline Vec broadcast(float x) { return x - Vec{}; }
inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<Vec*>(p) = x; }

// Loads or stores the first n floats of a vector. The others are zeros, or are not written.
inline Vec load(const float* p, int64_t n) {
  if (n >= V) return load(p);
  Vec x{};
  std::memcpy(&x, p, n * sizeof(float));
  return x;
}
inline void store(float* p, Vec x, int64_t n) {
  if (n >= V) return store(p, x);
  std::memcpy(p, &x, n * sizeof(float));
}

// Keeps a vector in a register, of which AVX-512 has enough. Without it GCC loads the weights of a tile again for
// each row, and a tile of few rows waits for those loads.
inline void keep_in_register([[maybe_unused]] Vec& x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#endif
}
inline void keep_in_register([[maybe_unused]] Ints& x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#endif
}

// Returns exp(x) - 1, to a few units in the last place: x = n ln 2 + r, and the power series in r.
inline Vec expm1(Vec x) {
  // Beyond these bounds exp(x) leaves the range of float32.
  x = x < -87.f ? broadcast(-87.f) : x;
  x = x > 87.f ? broadcast(87.f) : x;
  // 12582912 is 1.5 * 2^23, so the sum is rounded to a whole number, whose last bits are n.
  const Vec shifted = x * 1.44269504f + 12582912.f;
  const Vec n = shifted - 12582912.f;
  // ln 2 is subtracted in two parts, the first of which n multiplies exactly.
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = r * (1.f / 5040) + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * (r * r) + r;
  const Ints bits = (reinterpret_cast<const Ints&>(shifted) << 23) + (127 << 23);
  // 2^n
  const Vec scale = reinterpret_cast<const Vec&>(bits);
  return scale * p + (scale - 1.f);
}
inline Vec sigmoid(Vec x) { return 1.f / (expm1(-x) + 2.f); }
inline Vec tanh(Vec x) {
  const Vec e = expm1(x + x);
  return e / (e + 2.f);
}
