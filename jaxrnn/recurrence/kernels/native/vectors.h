// Vectors of V floats, and the activation functions on them.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

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

// Function calls would save vectors to memory, and the processor could not overlap the gates of a cell.
#define ALWAYS_INLINE inline __attribute__((always_inline))

// Returns x within bounds. What is not a number stays so.
ALWAYS_INLINE Vec clamp(Vec x, float low, float high) {
#if defined(__AVX512F__)
  // These return their second operand if either is not a number.
  return (Vec)_mm512_max_ps(_mm512_set1_ps(low), _mm512_min_ps(_mm512_set1_ps(high), (__m512)x));
#else
  x = x < low ? broadcast(low) : x;
  return x > high ? broadcast(high) : x;
#endif
}

// Returns 1 / x to about a unit in the last place, for x from 1 to 2^126.
ALWAYS_INLINE Vec reciprocal(Vec x) {
#if defined(__AVX512F__)
  // 14 bits, and twice as many after a step of Newton's method. A division takes longer.
  const Vec r = (Vec)_mm512_rcp14_ps((__m512)x);
  return r + r * (1.f - x * r);
#else
  return 1.f / x;
#endif
}

// A power of two: 2^(c x) = 2^n 2^r with a whole number n and |r| <= 1/2.
struct Power {
  Vec r, two_to_n;

  // bound: of |x|, beyond which float32 has no such power.
  ALWAYS_INLINE Power(Vec x, float c, float bound) {
    x = clamp(x, -bound, bound);
    // 12582912 is 1.5 * 2^23, so the sum is rounded to a whole number, whose last bits are n.
    const Vec shifted = x * c + 12582912.f;
    r = x * c - (shifted - 12582912.f);
    const Ints bits = (reinterpret_cast<const Ints&>(shifted) << 23) + (127 << 23);
    two_to_n = reinterpret_cast<const Vec&>(bits);
  }
};

// Returns the minimax polynomial of (2^r - 1) / r between -1/2 and 1/2, whose relative error is below 2^-26.
ALWAYS_INLINE Vec exp2m1_over(Vec r) {
  Vec p = r * 1.5403512e-4f + 1.3390735e-3f;
  p = p * r + 9.618238e-3f;
  p = p * r + 5.5503573e-2f;
  p = p * r + 2.4022649e-1f;
  return p * r + 6.931472e-1f;
}

constexpr float LOG2_E = 1.44269504f;

// Both to a few units in the last place.
ALWAYS_INLINE Vec sigmoid(Vec x) {
  const Power e(x, -LOG2_E, 87.f);
  return reciprocal(e.two_to_n * (exp2m1_over(e.r) * e.r + 1.f) + 1.f);
}
ALWAYS_INLINE Vec tanh(Vec x) {
  const Power e(x, 2 * LOG2_E, 43.f);
  // 2^(c x) - 1, exact where it is small.
  const Vec less_one = e.two_to_n * (exp2m1_over(e.r) * e.r) + (e.two_to_n - 1.f);
  return less_one * reciprocal(less_one + 2.f);
}
