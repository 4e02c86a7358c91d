// The arrays of a call: their dtypes, checks, and the parts that belong to each of several problems.

#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <numeric>
#include <string>
#include <utility>

#include "checks.h"
#include "recurrence.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using FloatArray = ffi::Buffer<ffi::F32>;
using Bools = ffi::Buffer<ffi::PRED>;
using Tokens = ffi::Buffer<ffi::S32>;
// float32, or bfloat16 for products of bfloat16 numbers.
using Weights = ffi::AnyBuffer;
// Arrays of all steps, which may be bfloat16 beside such weights.
using Steps = ffi::AnyBuffer;
using Results = ffi::Result<FloatArray>;
using StepResults = ffi::Result<Steps>;

inline bool is_narrow(const ffi::AnyBuffer& x) { return x.element_type() == ffi::BF16; }

template <class Buffer>
bool present(const Buffer& x) {
  return x.element_count() != 0;
}

inline void expect_large(Results& x) { use_huge_pages(x->typed_data(), x->size_bytes()); }
inline void expect_large(StepResults& x) { use_huge_pages(x->untyped_data(), x->size_bytes()); }

// Returns the lengths of the mapped axes of a call, from a result that has `rank` axes besides.
template <class Buffer>
Checks::Shape mapped_axes(const Buffer& x, size_t rank) {
  const auto sizes = x.dimensions();
  return Checks::Shape(sizes.begin(), sizes.end() - std::min(rank, sizes.size()));
}

// The members of a call that `jax.vmap` has mapped: problems of their own, one for each element of the mapped
// axes. A call that is not mapped has one member.
class Members {
 public:
  explicit Members(Checks::Shape axes) : axes_(std::move(axes)) {
    for (const int64_t length : axes_) count_ *= length;
  }

  // Returns the part of an array that belongs to member n; null if the array is absent.
  template <class Buffer>
  auto data(const Buffer& x, int64_t n) const -> decltype(x.typed_data()) {
    return present(x) ? x.typed_data() + place(x, n) : nullptr;
  }
  template <class Number>
  Number* weights(const Weights& x, int64_t n) const {
    return present(x) ? static_cast<Number*>(x.untyped_data()) + place(x, n) : nullptr;
  }
  template <class Buffer>
  auto data(ffi::Result<Buffer>& x, int64_t n) const {
    return data(*x, n);
  }
  Series data(const Steps& x, int64_t n) const {
    if (!present(x)) return {};
    const bool narrow = is_narrow(x);
    return {static_cast<char*>(x.untyped_data()) + place(x, n) * (narrow ? 2 : 4), narrow};
  }

  // Runs run(threads, n) for every member n. work: multiply-adds of one member.
  template <class Run>
  ffi::Error run(ffi::ThreadPool& pool, int64_t work, const Run& run) const {
    // With few members, several threads share each, so that all threads have about the same work.
    const int64_t threads = pool.num_threads();
    const int64_t each = count_ >= 4 * threads ? 1 : threads / std::gcd(threads, count_);
    try {
      parallel_for(pool, count_, count_ * work, [&](int64_t n) {
        Threads some(pool, each);
        run(some, n);
      });
    } catch (const std::bad_alloc&) {
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxrnn: out of memory");
    }
    return ffi::Error::Success();
  }

 private:
  // Returns the place in an array at which member n begins.
  template <class Buffer>
  int64_t place(const Buffer& x, int64_t n) const {
    const auto sizes = x.dimensions();
    int64_t stride = x.element_count(), at = 0;
    for (size_t axis = 0; axis < axes_.size(); ++axis) stride /= sizes[axis];
    for (size_t axis = axes_.size(); axis-- > 0; n /= axes_[axis]) {
      // The length is 1 if all members share the array.
      at += n % axes_[axis] % sizes[axis] * stride;
      stride *= sizes[axis];
    }
    return at;
  }

  Checks::Shape axes_;
  int64_t count_ = 1;
};

// Requires floats, or bfloat16 numbers if they `may_be_narrow`.
inline void check_dtype(Checks& checks, const char* name, const ffi::AnyBuffer& x, bool may_be_narrow = true) {
  checks.require(x.element_type() == ffi::F32 || (may_be_narrow && is_narrow(x)),
                 std::string(name) + " must be float32" + (may_be_narrow ? " or bfloat16" : ""));
}

inline void check_packed(Checks& checks, const char* name, const Weights& w, Form form, int64_t gates, int64_t K,
                         int64_t H) {
  check_dtype(checks, name, w);
  checks.shape(name, w, {packed_size(is_narrow(w), form, gates, K, H)});
}
