// Work on all cores, by the threads that XLA already has.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

inline void pause_a_little(int& turns) {
  if (++turns < 4096) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  } else {
    std::this_thread::yield();
  }
}

// Runs what(n) for n = 0 .. count - 1, each on whichever thread is free, and returns when all are done.
// Never waits for a thread to begin: the caller does what nobody else has, so that no two calls that
// wait for each other's threads can stop each other.
template <class What>
void each(xla::ffi::ThreadPool& pool, int64_t count, const What& what) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
  };
  const auto shared = std::make_shared<Shared>();
  const What* const work = &what;  // gone when all are done; who comes later does not look
  auto take = [shared, work, count] {
    for (int64_t n; (n = shared->next.fetch_add(1)) < count;) {
      (*work)(n);
      shared->done.fetch_add(1, std::memory_order_release);
    }
  };
  const int64_t helpers = std::min(count, pool.num_threads()) - 1;
  for (int64_t n = 0; n < helpers; ++n) pool.Schedule(decltype(take)(take));
  take();
  for (int turns = 0; shared->done.load(std::memory_order_acquire) < count;) pause_a_little(turns);
}

// Threads that do the steps of one loop together.
class Team {
 public:
  int64_t size() const { return size_; }

  // Returns when every member has come here.
  void meet() {
    if (size_ == 1) return;
    const int64_t turn = turn_.load(std::memory_order_relaxed);
    if (here_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      here_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    for (int turns = 0; turn_.load(std::memory_order_acquire) == turn;) pause_a_little(turns);
  }

 private:
  template <class What>
  friend void together(xla::ffi::ThreadPool&, int64_t, std::chrono::nanoseconds, const What&);

  static constexpr int64_t CLOSED = 1 << 30;
  std::atomic<int64_t> members_{1}, done_{0}, turn_{0};
  alignas(64) std::atomic<int64_t> here_{0};
  std::atomic<bool> go_{false};
  int64_t size_ = 1;
};

// Runs what(n, team) for n = 0 .. team.size() - 1 at the same time, on at most `most` threads: on those
// that come before the patience ends, since others may be busy for long. Waking one takes some 50 µs.
template <class What>
void together(xla::ffi::ThreadPool& pool, int64_t most, std::chrono::nanoseconds patience,
              const What& what) {
  const auto team = std::make_shared<Team>();
  const What* const work = &what;
  const auto caller = std::this_thread::get_id();
  auto join = [team, work, caller] {
    if (std::this_thread::get_id() == caller) return;  // a full queue runs its tasks on the spot
    const int64_t n = team->members_.fetch_add(1);
    if (n >= Team::CLOSED) return;
    for (int turns = 0; !team->go_.load(std::memory_order_acquire);) pause_a_little(turns);
    (*work)(n, *team);
    team->done_.fetch_add(1, std::memory_order_release);
  };
  for (int64_t n = 1; n < most; ++n) pool.Schedule(decltype(join)(join));
  const auto end = std::chrono::steady_clock::now() + patience;
  for (int turns = 0; team->members_.load() < most && std::chrono::steady_clock::now() < end;)
    pause_a_little(turns);
  team->size_ = team->members_.fetch_add(Team::CLOSED);
  team->go_.store(true, std::memory_order_release);
  what(0, *team);
  for (int turns = 0; team->done_.load(std::memory_order_acquire) < team->size_ - 1;) pause_a_little(turns);
}
