// Products of rows with packed weights, of three kinds:
//
//   Floats   float32
//   Pairs    bfloat16 with float32 sums: instructions that multiply pairs of numbers (AVX512-BF16), or float32
//            ones after the weights, which take half of the memory, have been widened
//   Tiles    bfloat16 with float32 sums: instructions that multiply tiles (AMX); tiles.h
//
// A kind has these members:
//
//   Operand, Weight      how left operands and weights are stored
//   PACK                 numbers of K that lie side by side in packed weights
//   K_ALIGN, K_STRIDE    what K is rounded up to in products, and in packed weights; the rest has to be zeros
//   MAX_ROWS             the most rows of a call of `product`
//   FEWEST_ROWS          the rows that a thread should have at least, as each reads all weights at every step
//   NARROW               whether operands are rounded, and so are kept beside the floats that they are made from
//   put(to, x, n)        stores the first n floats of a vector as operands
//   pack(x, y)           returns a vector of packed weights from PACK vectors of floats
//   product<A>(...)      adds x w to out for some rows and A vectors
//   Session              an object that has to exist in a thread that calls `product`

#pragma once

#include "vectors.h"

// The upper half of a float.
using Bfloat16 = uint16_t;
typedef Bfloat16 HalfVec __attribute__((vector_size(V * 2), aligned(2), may_alias));

inline HalfVec load(const Bfloat16* p, int64_t n) {
  if (n >= V) return *reinterpret_cast<const HalfVec*>(p);
  HalfVec x{};
  std::memcpy(&x, p, n * sizeof(Bfloat16));
  return x;
}
inline void store(Bfloat16* p, HalfVec x, int64_t n) {
  if (n >= V) *reinterpret_cast<HalfVec*>(p) = x;
  else std::memcpy(p, &x, n * sizeof(Bfloat16));
}

// Returns the bits of floats that are rounded to the nearest bfloat16, or to the even one of two. The lower half
// is not zero.
inline Ints rounded_bits(Vec x) {
  const Ints bits = reinterpret_cast<const Ints&>(x);
  const Ints up = bits + 0x7fff + ((bits >> 16) & 1);
  // Rounding up could make an infinity of a NaN.
  return x == x ? up : bits | (1 << 22);
}
inline HalfVec narrow(Vec x) {
#if defined(__AVX512BF16__)
  return (HalfVec)_mm512_cvtneps_pbh((__m512)x);
#else
  return __builtin_convertvector(rounded_bits(x) >> 16, HalfVec);
#endif
}

inline Vec widen(HalfVec x) {
  const Ints bits = __builtin_convertvector(x, Ints) << 16;
  return reinterpret_cast<const Vec&>(bits);
}

// An array in memory, of floats or of bfloat16 numbers, that is read and written as vectors of floats.
struct Series {
  void* data = nullptr;
  bool narrow = false;

  Series() = default;
  Series(void* data, bool narrow) : data(data), narrow(narrow) {}
  // An array that is only read.
  Series(const float* data) : data(const_cast<float*>(data)) {}

  explicit operator bool() const { return data; }
  float* floats() const { return static_cast<float*>(data); }
  Bfloat16* halves() const { return static_cast<Bfloat16*>(data); }
  // The n numbers from a place on, at most V, and zeros.
  Vec at(int64_t place, int64_t n) const {
    return narrow ? widen(load(halves() + place, n)) : load(floats() + place, n);
  }
  void put(int64_t place, Vec x, int64_t n) const {
    if (narrow) store(halves() + place, ::narrow(x), n);
    else store(floats() + place, x, n);
  }
};

// The left operand of a product. PACK numbers of k lie side by side: x[row, k] is
// data[row * by_row + k / PACK * by_step + k % PACK].
template <class Operand>
struct Left {
  const Operand* data;
  int64_t by_row, by_step;
  Left from(int64_t row, int64_t steps = 0) const {
    return {data + row * by_row + steps * by_step, by_row, by_step};
  }
};

// Adds x w to out: out[r, a] += sum over k of x[r, k] w[k, a], for R rows and A vectors.
template <class Kind, int R, int A>
void tile(Left<typename Kind::Operand> x, const typename Kind::Weight* w, int64_t K, float* out, int64_t ldo) {
  Vec sum[R][A];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int a = 0; a < A; ++a) sum[r][a] = load(out + r * ldo + a * V);
  for (int64_t k = 0; k < K; k += Kind::PACK, w += A * V * Kind::PACK, x.data += x.by_step)
#pragma GCC unroll 2
    for (int part = 0; part < Kind::PARTS; ++part) {
      typename Kind::Lanes row[A];
#pragma GCC unroll 8
      for (int a = 0; a < A; ++a) {
        row[a] = Kind::weights(w + a * V * Kind::PACK, part);
        keep_in_register(row[a]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const auto value = Kind::broadcast(x.data + r * x.by_row, part);
#pragma GCC unroll 8
        for (int a = 0; a < A; ++a) sum[r][a] = Kind::add_product(sum[r][a], value, row[a]);
      }
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int a = 0; a < A; ++a) store(out + r * ldo + a * V, sum[r][a]);
}

// The kinds whose products are `tile`.
template <class Kind>
struct Vectors {
  static constexpr int64_t MAX_ROWS = MAX_TILE_ROWS, FEWEST_ROWS = 4;
  struct Session {};

  template <int A, class Operand, class Weight>
  static void product(int64_t rows, Left<Operand> x, const Weight* w, int64_t K, float* out, int64_t ldo) {
    switch (rows) {
      case 1: return tile<Kind, 1, A>(x, w, K, out, ldo);
      case 2: return tile<Kind, 2, A>(x, w, K, out, ldo);
      case 3: return tile<Kind, 3, A>(x, w, K, out, ldo);
      case 4: return tile<Kind, 4, A>(x, w, K, out, ldo);
      case 5: return tile<Kind, 5, A>(x, w, K, out, ldo);
      case 6: return tile<Kind, 6, A>(x, w, K, out, ldo);
    }
  }
};

struct Floats : Vectors<Floats> {
  using Operand = float;
  using Weight = float;
  using Lanes = Vec;
  static constexpr int64_t PACK = 1, K_ALIGN = 1, K_STRIDE = 1;
  static constexpr bool NARROW = false;
  static constexpr int PARTS = 1;

  static Vec weights(const float* p, int) { return load(p); }
  static Vec broadcast(const float* p, int) { return ::broadcast(*p); }
  static Vec add_product(Vec sum, Vec x, Vec w) { return sum + x * w; }
  static void put(float* to, Vec x, int64_t n = V) { store(to, x, n); }
  static Vec pack(Vec x, Vec) { return x; }
};

// Two bfloat16 numbers of K in each lane.
struct Pairs : Vectors<Pairs> {
  using Weight = Bfloat16;
  // Packed weights are also those of `Tiles`, which takes 32 numbers of K at a time.
  static constexpr int64_t PACK = 2, K_ALIGN = 2, K_STRIDE = 32;
  static constexpr bool NARROW = true;

  static Ints pack(HalfVec x, HalfVec y) {
    return __builtin_convertvector(x, Ints) | __builtin_convertvector(y, Ints) << 16;
  }
  static Ints pack(Vec x, Vec y) { return pack(narrow(x), narrow(y)); }

#if defined(__AVX512BF16__)
  using Operand = Bfloat16;
  using Lanes = Ints;
  static constexpr int PARTS = 1;

  static Ints weights(const Bfloat16* p, int) { return *reinterpret_cast<const Ints*>(p); }
  static Ints broadcast(const Bfloat16* p, int) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return pair - Ints{};
  }
  static Vec add_product(Vec sum, Ints x, Ints w) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
  }
  static void put(Bfloat16* to, Vec x, int64_t n = V) { store(to, narrow(x), n); }
#else
  using Operand = float;
  using Lanes = Vec;
  // The first numbers of all pairs, then the second ones.
  static constexpr int PARTS = 2;

  static Vec weights(const Bfloat16* p, int part) {
    const Ints pairs = *reinterpret_cast<const Ints*>(p);
    const Ints bits = part ? pairs & -(1 << 16) : pairs << 16;
    return reinterpret_cast<const Vec&>(bits);
  }
  static Vec broadcast(const float* p, int part) { return ::broadcast(p[part]); }
  static Vec add_product(Vec sum, Vec x, Vec w) { return sum + x * w; }
  static void put(float* to, Vec x, int64_t n = V) {
    const Ints bits = rounded_bits(x) & -(1 << 16);
    store(to, reinterpret_cast<const Vec&>(bits), n);
  }
#endif
};

// Calls what(first, count) for tiles of about equal height, which together have all rows.
template <class Kind, class What>
void for_row_tiles(int64_t rows, What what) {
  const int64_t tiles = (rows + Kind::MAX_ROWS - 1) / Kind::MAX_ROWS;
  for (int64_t n = 0, row = 0; n < tiles; ++n) {
    const int64_t end = rows * (n + 1) / tiles;
    what(row, end - row);
    row = end;
  }
}
