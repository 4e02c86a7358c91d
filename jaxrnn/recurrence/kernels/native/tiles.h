// Products of tiles (Intel AMX): C [16, 16] += A [16, 32] B [32, 16], with A and B in bfloat16 and C in float32.
//
// B is read from packed weights as `Pairs` has them, so a row of B has two numbers of K for each of 16 units.
// JAXRNN_EMULATE_TILES, which the tests define, replaces the instructions by loops.

#pragma once

#include <algorithm>
#include <utility>

#include "products.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) || defined(JAXRNN_EMULATE_TILES)
#define JAXRNN_HAS_TILES 1

#if !defined(JAXRNN_EMULATE_TILES)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

// The shapes of the registers, as LDTILECFG reads them.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

#if defined(JAXRNN_EMULATE_TILES)

struct TileUnit {
  TileShapes shapes;
  alignas(64) char tiles[8][16][64];
};
inline TileUnit& tile_unit() {
  static thread_local TileUnit unit;
  return unit;
}
inline bool tiles_permitted() { return true; }
inline void shape_tiles(const TileShapes& shapes) {
  tile_unit() = {};
  tile_unit().shapes = shapes;
}
inline void release_tiles() { tile_unit() = {}; }
template <int N>
void load_tile(const void* from, int64_t stride) {
  TileUnit& unit = tile_unit();
  for (int row = 0; row < unit.shapes.rows[N]; ++row)
    std::memcpy(unit.tiles[N][row], static_cast<const char*>(from) + row * stride, unit.shapes.bytes[N]);
}
template <int N>
void store_tile(void* to, int64_t stride) {
  TileUnit& unit = tile_unit();
  for (int row = 0; row < unit.shapes.rows[N]; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride, unit.tiles[N][row], unit.shapes.bytes[N]);
}
template <int C, int A, int B>
void multiply_tiles() {
  TileUnit& unit = tile_unit();
  const auto number = [&](int tile, int row, int place) {
    Bfloat16 half;
    std::memcpy(&half, unit.tiles[tile][row] + 2 * place, sizeof half);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  };
  for (int row = 0; row < unit.shapes.rows[C]; ++row)
    for (int unit_of_row = 0; unit_of_row < unit.shapes.bytes[C] / 4; ++unit_of_row) {
      float sum;
      std::memcpy(&sum, unit.tiles[C][row] + 4 * unit_of_row, sizeof sum);
      for (int k = 0; k < unit.shapes.bytes[A] / 2; ++k)
        sum += number(A, row, k) * number(B, k / 2, 2 * unit_of_row + k % 2);
      std::memcpy(unit.tiles[C][row] + 4 * unit_of_row, &sum, sizeof sum);
    }
}

#else

// Returns whether the processor has the instructions, and asks the operating system once for the registers.
inline bool tiles_permitted() {
  static const bool permitted = [] {
    unsigned a, b, c, d = 0;
    constexpr unsigned AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & AMX_BF16) || !(d & AMX_TILE)) return false;
    // ARCH_REQ_XCOMP_PERM of arch_prctl, and the number of the registers' state.
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  }();
  return permitted;
}
inline void shape_tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
inline void release_tiles() { asm volatile("tilerelease"); }
template <int N>
void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "n"(N) : "memory");
}
template <int N>
void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "n"(N) : "memory");
}
template <int C, int A, int B>
void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(C), "n"(A), "n"(B));
}

#endif

struct Tiles : Pairs {
  static_assert(V == 16, "the units of a tile are those of a vector");
  // Tiles of bfloat16 numbers, also where `Pairs` has others.
  using Operand = Bfloat16;
  static constexpr int64_t K_ALIGN = 32, TALL = 16, MAX_ROWS = 2 * TALL, FEWEST_ROWS = 8;
  // With fewer rows in the batch, the time to read the weights is that of `Pairs`.
  static constexpr int64_t WORTH_TILES = 4;

  static void put(Bfloat16* to, Vec x, int64_t n = V) { store(to, narrow(x), n); }

  // The registers of a thread: their shapes depend on the number of rows, and change only when that changes.
  class Session {
   public:
    Session() { rows() = 0; }
    ~Session() {
      if (rows()) release_tiles();
      rows() = 0;
    }
    Session(const Session&) = delete;

    // Shapes the registers for a product of 1 to 16 rows, or of up to 32 in two tiles.
    static void shape(int64_t count) {
      if (rows() == count) return;
      rows() = count;
      TileShapes shapes;
      const int64_t first = first_tile(count);
      for (int n = 0; n <= B0; ++n) {
        shapes.bytes[n] = 64;
        const bool second = count > TALL && (n == C0 + 2 || n == C0 + 3 || n == A0 + 1);
        shapes.rows[n] = n == B0 ? TALL : second ? count - first : first;
      }
      shape_tiles(shapes);
    }

   private:
    static int64_t& rows() {
      static thread_local int64_t rows = 0;
      return rows;
    }
  };

  template <int A>
  static void product(int64_t rows, Left<Bfloat16> x, const Bfloat16* w, int64_t K, float* out, int64_t ldo) {
    Session::shape(rows);
    const int64_t second = first_tile(rows);
    if (rows > TALL) {
      block<2, A, 0, 2>(x, second, w, K, out, ldo);
      block<2, A, 2, A - 2>(x, second, w, K, out, ldo);
    } else {
      block<1, A, 0, A>(x, second, w, K, out, ldo);
    }
  }

 private:
  // The registers of the sums, of left operands and of weights.
  static constexpr int C0 = 0, A0 = 4, B0 = 6;

  static int64_t first_tile(int64_t rows) { return rows > TALL ? (rows + 1) / 2 : rows; }

  // Multiplies R tiles of rows, the second of which begins at row `second`, by vectors FROM .. FROM + COUNT - 1 of
  // the A of a panel.
  template <int R, int A, int FROM, int COUNT>
  static void block(Left<Bfloat16> x, int64_t second, const Bfloat16* w, int64_t K, float* out, int64_t ldo) {
    if constexpr (COUNT > 0) {
      float* const upper = out + FROM * V;
      const auto sums = [&](int64_t r, int64_t a) { return upper + r * second * ldo + a * V; };
      for_sums<R, COUNT>([&](auto r, auto a) { load_tile<C0 + 2 * r + a>(sums(r, a), 4 * ldo); });
      for (int64_t k = 0; k < K; k += K_ALIGN) {
        const Bfloat16* const left = x.data + k;
        load_tile<A0>(left, 2 * x.by_row);
        if constexpr (R == 2) load_tile<A0 + 1>(left + second * x.by_row, 2 * x.by_row);
        const Bfloat16* const right = w + k * A * V + FROM * V * PACK;
        for_sums<1, COUNT>([&](auto, auto a) {
          load_tile<B0>(right + a * V * PACK, 2 * A * V * PACK);
          multiply_tiles<C0 + a, A0, B0>();
          if constexpr (R == 2) multiply_tiles<C0 + 2 + a, A0 + 1, B0>();
        });
      }
      for_sums<R, COUNT>([&](auto r, auto a) { store_tile<C0 + 2 * r + a>(sums(r, a), 4 * ldo); });
    }
  }

  // Calls what(r, a) with constants r < R and a < COUNT.
  template <int R, int COUNT, class What>
  static void for_sums(const What& what) {
    for_constants(std::make_integer_sequence<int, R * COUNT>(), [&](auto n) {
      what(std::integral_constant<int, n / COUNT>(), std::integral_constant<int, n % COUNT>());
    });
  }
  template <int... N, class What>
  static void for_constants(std::integer_sequence<int, N...>, const What& what) {
    (what(std::integral_constant<int, N>()), ...);
  }
};

#endif
