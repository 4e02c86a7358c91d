// cuDNN itself: opened at run time, with contexts (its handles) that are kept for every device and stream, and its
// errors as exceptions.

#pragma once

#include <dlfcn.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "api.h"

namespace cudnn {

// What went wrong, in one line.
class Failure : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr size_t OLDEST = 90000;

class Library {
 public:
  // Opens the file, or does nothing if a library is open already.
  void open(const char* path) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (open_) return;
    void* file = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!file) throw Failure(dlerror());
    Functions found;
#define CUDNN_FIND(result, name, parameters) \
  found.name = reinterpret_cast<decltype(found.name)>(find(file, path, #name));
    CUDNN_FUNCTIONS(CUDNN_FIND)
#undef CUDNN_FIND
    const size_t version = found.cudnnGetVersion();
    if (version < OLDEST)
      throw Failure("cuDNN " + std::to_string(version / 1000) + "." + std::to_string(version / 100 % 10) +
                    " is too old; version 9 is needed");
    functions_ = found;
    open_ = true;
  }

  // An executable from a file may call cuDNN before anything opened it. JAX has loaded it in that case.
  const Functions& functions() {
    if (!open_) open("libcudnn.so.9");
    return functions_;
  }

 private:
  static void* find(void* file, const char* path, const char* name) {
    void* function = dlsym(file, name);
    if (!function) throw Failure(std::string(path) + " has no function " + name);
    return function;
  }

  std::mutex mutex_;
  Functions functions_;
  std::atomic<bool> open_{false};
};

// These functions are static, so that each library that is compiled from this file has a cuDNN of its own: tests load
// one with a stand-in beside the real one.
static Library& library() {
  static Library library;
  return library;
}

inline const Functions& functions() { return library().functions(); }

// Raises a Failure if a function of cuDNN failed, with all that cuDNN says about it.
inline void require(Status status, const char* name) {
  if (status == SUCCESS) return;
  char last[512] = "";
  functions().cudnnGetLastErrorString(last, sizeof last);
  std::string text = std::string(name) + " failed: " + functions().cudnnGetErrorString(status);
  if (*last) text += std::string(", ") + last;
  for (char& letter : text)
    if (letter == '\n' || letter == '\r') letter = ' ';
  throw Failure(text);
}

#define CUDNN(name, ...) cudnn::require(cudnn::functions().name(__VA_ARGS__), #name)

using Contexts = std::vector<Context*>;

static std::mutex& pools_mutex() {
  static std::mutex mutex;
  return mutex;
}

// The contexts live as long as the process: CUDA may have ended before static objects do.
static Contexts& pool(int device, void* stream) {
  static auto& pools = *new std::map<std::pair<int, void*>, Contexts>;
  const std::lock_guard<std::mutex> lock(pools_mutex());
  return pools[{device, stream}];
}

// A context of cuDNN for one device and stream, on loan until this object ends. A context has memory of its own,
// in which work that was queued on one stream would meet that of another.
class Loan {
 public:
  Loan(int device, void* stream) : free_(pool(device, stream)) {
    {
      const std::lock_guard<std::mutex> lock(pools_mutex());
      if (!free_.empty()) {
        context_ = free_.back();
        free_.pop_back();
        return;
      }
    }
    CUDNN(cudnnCreate, &context_);
    if (stream) CUDNN(cudnnSetStream, context_, stream);
  }
  ~Loan() {
    const std::lock_guard<std::mutex> lock(pools_mutex());
    free_.push_back(context_);
  }
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;

  operator Context*() const { return context_; }

 private:
  Contexts& free_;
  Context* context_ = nullptr;
};

}  // namespace cudnn
