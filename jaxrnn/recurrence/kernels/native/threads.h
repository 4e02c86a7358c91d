// Work divided among the threads of XLA's pool. No function here waits for a thread to start: the caller does
// what no other thread has taken, so that calls that share the pool cannot block each other.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <new>
#include <thread>

// Multiply-adds below which no other thread is woken: 10 to 50 µs, about as long as waking one takes.
constexpr int64_t WORTH_WAKING = 1 << 19;

// Waits a moment: for the first 50 µs or so it spins, after that it lets other threads run. Counts its calls.
// Returns whether it has let other threads run.
inline bool pause_briefly(int& calls) {
  if (++calls < 4096) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    return false;
  }
  std::this_thread::yield();
  return true;
}

// Runs what(n) for n = 0 .. count - 1, each on any free thread, and returns when all are done.
// work: multiply-adds of all n together; if there are too few, the caller does them alone.
template <class Pool, class What>
void parallel_for(Pool& pool, int64_t count, int64_t work, const What& what) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::atomic<bool> out_of_memory{false};
  };
  const auto shared = std::make_shared<Shared>();
  // The task no longer exists once all are done. A thread that starts later finds no n and does not use it.
  const What* const task = &what;
  auto run_until_empty = [shared, task, count] {
    for (int64_t n; (n = shared->next.fetch_add(1)) < count;) {
      try {
        (*task)(n);
      } catch (const std::bad_alloc&) {
        shared->out_of_memory = true;
      }
      shared->done.fetch_add(1, std::memory_order_release);
    }
  };
  const int64_t helpers = work < WORTH_WAKING ? 0 : std::min(count, pool.num_threads()) - 1;
  for (int64_t n = 0; n < helpers; ++n) pool.Schedule(decltype(run_until_empty)(run_until_empty));
  run_until_empty();
  for (int calls = 0; shared->done.load(std::memory_order_acquire) < count;) pause_briefly(calls);
  if (shared->out_of_memory) throw std::bad_alloc();
}

// A loop of turns, whose parts a team of threads runs: all parts of a turn, then those of the next turn.
//
// Each member of the team takes its own parts first, so that their weights stay in its core's cache, and then
// parts that no other member has taken. So a member that the operating system has suspended, or that has not
// started, delays the others only if it is in the middle of a part. A member that has delayed them for too long
// is excluded for a while, so that beside busy processes the loop is about as fast as one thread alone.
template <class What>
class Turns {
 public:
  Turns(int64_t turns, int64_t parts, int64_t members, const What& what)
      : turns_(turns), count_(parts), members_(members), what_(&what), parts_(new Part[parts]),
        helpers_(new Helper[members]), left_(parts) {}

  // Works as member `me` until the last turn is over. The caller of `run_turns` is member 0.
  void run(int64_t me) {
    for (int64_t turn; (turn = turn_.load(std::memory_order_acquire)) < turns_;) {
      if (!excluded(me)) work(turn, me);
      wait(turn, me);
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  // Time after which a member that has not finished its part is excluded.
  static constexpr std::chrono::microseconds PATIENCE{500};
  // A few time slices of the operating system. Each later exclusion is twice as long.
  static constexpr std::chrono::milliseconds FIRST_EXCLUSION{16};

  struct alignas(64) Part {
    // 2 n: free in turn n. 2 n + 1: taken in turn n.
    std::atomic<int64_t> state{0};
    // The member that took it last.
    std::atomic<int64_t> holder{0};
  };
  struct alignas(64) Helper {
    std::atomic<Clock::rep> excluded_until{0};
    Clock::duration exclusion = FIRST_EXCLUSION;
  };

  void work(int64_t turn, int64_t me) {
    int64_t done = 0;
    for (int64_t n = 0; n < count_; ++n) {
      Part& part = parts_[(count_ * me / members_ + n) % count_];
      int64_t free = 2 * turn;
      if (part.state.load(std::memory_order_relaxed) != free ||
          !part.state.compare_exchange_strong(free, free + 1, std::memory_order_relaxed))
        continue;
      // The turn cannot end before this part is done, so what `what_` points to still exists.
      part.holder.store(me, std::memory_order_relaxed);
      (*what_)(turn, &part - parts_.get());
      part.state.store(2 * turn + 2, std::memory_order_relaxed);
      ++done;
    }
    if (done && left_.fetch_sub(done, std::memory_order_acq_rel) == done) {
      left_.store(count_, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
    }
  }

  void wait(int64_t turn, int64_t me) {
    Clock::time_point begun{};
    for (int calls = 0; turn_.load(std::memory_order_acquire) == turn;) {
      if (!pause_briefly(calls) || me != 0) continue;
      const auto now = Clock::now();
      if (begun == Clock::time_point{}) begun = now;
      if (now - begun < PATIENCE) continue;
      exclude_late(turn, now);
      begun = now;
    }
  }

  bool excluded(int64_t me) const {
    const auto until = helpers_[me].excluded_until.load(std::memory_order_relaxed);
    return until && Clock::now().time_since_epoch().count() < until;
  }

  void exclude_late(int64_t turn, Clock::time_point now) {
    for (int64_t n = 0; n < count_; ++n) {
      const int64_t holder = parts_[n].holder.load(std::memory_order_relaxed);
      if (holder == 0 || parts_[n].state.load(std::memory_order_relaxed) != 2 * turn + 1) continue;
      Helper& late = helpers_[holder];
      if (late.excluded_until.load(std::memory_order_relaxed) > now.time_since_epoch().count()) continue;
      late.excluded_until.store((now + late.exclusion).time_since_epoch().count(), std::memory_order_relaxed);
      late.exclusion *= 2;
    }
  }

  const int64_t turns_, count_, members_;
  const What* const what_;
  const std::unique_ptr<Part[]> parts_;
  const std::unique_ptr<Helper[]> helpers_;
  // Parts of this turn that are not done.
  alignas(64) std::atomic<int64_t> left_;
  alignas(64) std::atomic<int64_t> turn_{0};
};

// Runs what(turn, part) for every part of turn 0, then of turn 1, and so on, on at most `members` threads.
template <class Pool, class What>
void run_turns(Pool& pool, int64_t members, int64_t turns, int64_t parts, const What& what) {
  const auto team = std::make_shared<Turns<What>>(turns, parts, members, what);
  const auto caller = std::this_thread::get_id();
  for (int64_t n = 1; n < members; ++n) {
    pool.Schedule([team, caller, n] {
      // A pool whose queue is full runs a task in the caller's thread, which would then wait for itself.
      if (std::this_thread::get_id() != caller) team->run(n);
    });
  }
  team->run(0);
}
