// What a call demands of its arrays. XLA passes on whatever a program holds, so every dimension that a loop
// goes by is compared before anything is read or written.

#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "xla/ffi/api/ffi.h"

// Collects the first thing that is wrong with the arguments of a call.
class Checks {
 public:
  using Shape = std::vector<int64_t>;

  explicit Checks(const char* call) : call_(call) {}

  bool fine() const { return wrong_.empty(); }
  xla::ffi::Error error() const {
    return fine() ? xla::ffi::Error::Success() : xla::ffi::Error::InvalidArgument(call_ + ": " + wrong_);
  }

  void demand(bool truth, const std::string& wrong) {
    if (!truth && fine()) wrong_ = wrong;
  }

  // An array of any sizes with so many dimensions, each of at least one entry.
  template <class Buffer>
  void rank(const char* name, const Buffer& x, size_t rank) {
    const auto sizes = x.dimensions();
    const bool empty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
    demand(sizes.size() == rank && !empty,
           std::string(name) + " must have " + std::to_string(rank) + " dimensions, none of them 0, not " +
               words(sizes));
  }

  template <class Buffer>
  void shape(const char* name, const Buffer& x, const Shape& wanted) {
    const auto sizes = x.dimensions();
    demand(sizes.size() == wanted.size() && std::equal(sizes.begin(), sizes.end(), wanted.begin()),
           std::string(name) + " must be " + words(wanted) + ", not " + words(sizes));
  }

  // An array without entries is one that is not there.
  template <class Buffer>
  void absent(const char* name, const Buffer& x) {
    demand(!x.element_count(), std::string(name) + " must be empty here, not " + words(x.dimensions()));
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
