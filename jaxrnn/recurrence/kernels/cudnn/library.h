// Loads cuDNN at run time, keeps a pool of cuDNN contexts (handles) for each device and stream, and converts cuDNN's
// errors to exceptions.

#pragma once

#include <dlfcn.h>

#include <atomic>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "api.h"

namespace cudnn {

// An error of cuDNN or of loading it. The message is one line.
class CudnnError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The oldest supported version, as cudnnGetVersion returns it.
constexpr size_t OLDEST_VERSION = 90000;

class Library {
 public:
  // Loads cuDNN from the file, unless it is already loaded.
  void open(const char* path) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (open_) return;
    void* file = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!file) throw CudnnError(dlerror());
    Functions found;
#define CUDNN_FIND(result, name, parameters) \
  found.name = reinterpret_cast<decltype(found.name)>(find(file, path, #name));
    CUDNN_FUNCTIONS(CUDNN_FIND)
#undef CUDNN_FIND
    const size_t version = found.cudnnGetVersion();
    if (version < OLDEST_VERSION)
      throw CudnnError("cuDNN " + std::to_string(version / 1000) + "." + std::to_string(version / 100 % 10) +
                       " is too old; version 9 is needed");
    functions_ = found;
    open_ = true;
  }

  // A serialized executable may call cuDNN before Python has loaded it here. JAX itself has loaded it by then.
  const Functions& functions() {
    if (!open_) open("libcudnn.so.9");
    return functions_;
  }

 private:
  static void* find(void* file, const char* path, const char* name) {
    void* function = dlsym(file, name);
    if (!function) throw CudnnError(std::string(path) + " has no function " + name);
    return function;
  }

  std::mutex mutex_;
  Functions functions_;
  std::atomic<bool> open_{false};
};

// These functions are static so that every shared library that includes this file loads its own cuDNN. Tests use one
// with a stand-in and one with the real cuDNN in the same process.
static Library& library() {
  static Library library;
  return library;
}

inline const Functions& functions() { return library().functions(); }

// Throws a CudnnError with cuDNN's own text if a cuDNN function failed.
inline void require(Status status, const char* name) {
  if (status == SUCCESS) return;
  char last[512] = "";
  functions().cudnnGetLastErrorString(last, sizeof last);
  std::string text = std::string(name) + " failed: " + functions().cudnnGetErrorString(status);
  if (*last) text += std::string(", ") + last;
  for (char& letter : text)
    if (letter == '\n' || letter == '\r') letter = ' ';
  throw CudnnError(text);
}

// Calls a cuDNN function and checks its status.
#define CUDNN(name, ...) cudnn::require(cudnn::functions().name(__VA_ARGS__), #name)

using Contexts = std::vector<Context*>;

static std::mutex& pools_mutex() {
  static std::mutex mutex;
  return mutex;
}

// Returns the idle contexts of a device and stream. They are never destroyed, because CUDA may already have shut down
// when static objects are destroyed.
static Contexts& pool(int device, void* stream) {
  static auto& pools = *new std::map<std::pair<int, void*>, Contexts>;
  const std::lock_guard<std::mutex> lock(pools_mutex());
  return pools[{device, stream}];
}

// Borrows a cuDNN context from the pool for the lifetime of this object. Contexts are not shared between streams,
// because each has an internal workspace that pending work on another stream could overwrite.
class BorrowedContext {
 public:
  BorrowedContext(int device, void* stream) : free_(pool(device, stream)) {
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
  ~BorrowedContext() {
    const std::lock_guard<std::mutex> lock(pools_mutex());
    free_.push_back(context_);
  }
  BorrowedContext(const BorrowedContext&) = delete;
  BorrowedContext& operator=(const BorrowedContext&) = delete;

  operator Context*() const { return context_; }

 private:
  Contexts& free_;
  Context* context_ = nullptr;
};

}  // namespace cudnn
