// Checks of a call's arrays. XLA passes whatever arrays a program has, so every size that the call relies on is
// checked before anything is read or written.
//
// `jax.vmap` may map a call: then its arrays have further axes in front. An axis that an argument does not have
// of its own has length 1 there.

#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

// Keeps the first error in the arguments of a call.
class Checks {
 public:
  using Shape = std::vector<int64_t>;

  // mapped: the lengths of the mapped axes, those of a result.
  explicit Checks(const char* call, Shape mapped = {}) : call_(call), mapped_(std::move(mapped)) {}

  bool ok() const { return wrong_.empty(); }
  xla::ffi::Error error() const {
    return ok() ? xla::ffi::Error::Success() : xla::ffi::Error::InvalidArgument(call_ + ": " + wrong_);
  }

  void require(bool truth, const std::string& wrong) {
    if (!truth && ok()) wrong_ = wrong;
  }

  // Requires `rank` dimensions after the mapped axes, and no size of 0.
  template <class Buffer>
  void rank(const char* name, const Buffer& x, size_t rank) {
    const auto sizes = x.dimensions();
    const bool empty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
    require(sizes.size() == mapped_.size() + rank && !empty,
           std::string(name) + " must have " + std::to_string(mapped_.size() + rank) +
               " dimensions, none of them 0, not " + words(sizes));
  }

  // Returns the sizes after the mapped axes.
  template <class Buffer>
  Shape sizes(const Buffer& x) const {
    const auto all = x.dimensions();
    return Shape(all.begin() + mapped_.size(), all.end());
  }

  template <class Buffer>
  void shape(const char* name, const Buffer& x, const Shape& wanted) {
    const auto sizes = x.dimensions();
    Shape whole = mapped_;
    for (size_t n = 0; n < whole.size() && n < sizes.size(); ++n)
      if (sizes[n] == 1) whole[n] = 1;
    require_sizes(name, sizes, whole, wanted);
  }

  // A result has all mapped axes.
  template <class Buffer>
  void result(const char* name, xla::ffi::Result<Buffer>& x, const Shape& wanted) {
    require_sizes(name, x->dimensions(), mapped_, wanted);
  }

  // Requires an empty array, which stands for an absent one.
  template <class Buffer>
  void absent(const char* name, const Buffer& x) {
    require(!x.element_count(), std::string(name) + " must be empty here, not " + words(x.dimensions()));
  }

  template <class Buffer>
  void shape_if(bool there, const char* name, const Buffer& x, const Shape& wanted) {
    there ? shape(name, x, wanted) : absent(name, x);
  }

  template <class Buffer>
  void result_if(bool there, const char* name, xla::ffi::Result<Buffer>& x, const Shape& wanted) {
    there ? result(name, x, wanted) : absent(name, *x);
  }

 private:
  template <class Sizes>
  void require_sizes(const char* name, const Sizes& sizes, Shape whole, const Shape& wanted) {
    whole.insert(whole.end(), wanted.begin(), wanted.end());
    require(sizes.size() == whole.size() && std::equal(sizes.begin(), sizes.end(), whole.begin()),
           std::string(name) + " must be " + words(whole) + ", not " + words(sizes));
  }

  template <class Sizes>
  static std::string words(const Sizes& sizes) {
    std::string text = "[";
    for (const int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
    return text + "]";
  }

  std::string call_, wrong_;
  Shape mapped_;
};
