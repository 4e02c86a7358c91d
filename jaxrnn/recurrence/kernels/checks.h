// Checks of a call's arrays. XLA passes whatever arrays a program has, so every size that the call relies on is
// checked before anything is read or written.

#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "xla/ffi/api/ffi.h"

// Keeps the first error in the arguments of a call.
class Checks {
 public:
  using Shape = std::vector<int64_t>;

  explicit Checks(const char* call) : call_(call) {}

  bool ok() const { return wrong_.empty(); }
  xla::ffi::Error error() const {
    return ok() ? xla::ffi::Error::Success() : xla::ffi::Error::InvalidArgument(call_ + ": " + wrong_);
  }

  void require(bool truth, const std::string& wrong) {
    if (!truth && ok()) wrong_ = wrong;
  }

  // Requires `rank` dimensions, of any sizes but 0.
  template <class Buffer>
  void rank(const char* name, const Buffer& x, size_t rank) {
    const auto sizes = x.dimensions();
    const bool empty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
    require(sizes.size() == rank && !empty,
           std::string(name) + " must have " + std::to_string(rank) + " dimensions, none of them 0, not " +
               words(sizes));
  }

  template <class Buffer>
  void shape(const char* name, const Buffer& x, const Shape& wanted) {
    const auto sizes = x.dimensions();
    require(sizes.size() == wanted.size() && std::equal(sizes.begin(), sizes.end(), wanted.begin()),
           std::string(name) + " must be " + words(wanted) + ", not " + words(sizes));
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

 private:
  template <class Sizes>
  static std::string words(const Sizes& sizes) {
    std::string text = "[";
    for (const int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
    return text + "]";
  }

  std::string call_, wrong_;
};
