// Work shared among the threads that XLA already has. No function here waits for a thread to begin: the
// caller does what no other thread has taken, so that calls that share the threads cannot block each other.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <new>
#include <thread>

constexpr int64_t WORTH_WAKING = 1 << 19;  // multiply-adds: 10 to 50 µs, as long as waking a thread takes

// Spins for some 50 µs, then lets other threads run; counts its calls. Returns whether it has spun enough.
inline bool pause_a_little(int& calls) {
  if (++calls < 4096) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    return false;
  }
  std::this_thread::yield();
  return true;
}

// Runs what(n) for n = 0 .. count - 1, each on whichever thread is free, and returns when all are done.
// work: multiply-adds of all of them together; too few are done by the caller alone.
template <class Pool, class What>
void each(Pool& pool, int64_t count, int64_t work, const What& what) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::atomic<bool> out_of_memory{false};
  };
  const auto shared = std::make_shared<Shared>();
  const What* const task = &what;  // gone when all are done; a thread that comes later does not look
  auto take = [shared, task, count] {
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
  for (int64_t n = 0; n < helpers; ++n) pool.Schedule(decltype(take)(take));
  take();
  for (int calls = 0; shared->done.load(std::memory_order_acquire) < count;) pause_a_little(calls);
  if (shared->out_of_memory) throw std::bad_alloc();
}

// A loop of turns whose parts several threads take together: all parts of a turn, then those of the next.
//
// Each member of the team takes its own parts first, which keeps their weights in its core's cache, and then
// those that no other member has taken yet. So a member that the operating system has put aside, or that has
// not come yet, holds up the others only where it is in the middle of a part. One that has done so for too
// long is left out for a while: beside busy processes the loop is about as fast as one thread alone.
template <class What>
class Turns {
 public:
  Turns(int64_t turns, int64_t parts, int64_t members, const What& what)
      : turns_(turns), count_(parts), members_(members), what_(&what), parts_(new Part[parts]),
        helpers_(new Helper[members]), left_(parts) {}

  // Takes part as member `me` until the last turn is over. The caller of `in_turns` is member 0.
  void join(int64_t me) {
    for (int64_t turn; (turn = turn_.load(std::memory_order_acquire)) < turns_;) {
      if (!left_out(me)) work(turn, me);
      wait(turn, me);
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds TOO_LONG{500};
  static constexpr std::chrono::milliseconds FIRST_BAN{16};  // a few time slices; each later one is doubled

  struct alignas(64) Part {
    std::atomic<int64_t> state{0};  // 2 n: free in turn n, 2 n + 1: taken in turn n
    std::atomic<int64_t> holder{0};  // who took it last
  };
  struct alignas(64) Helper {
    std::atomic<Clock::rep> out_until{0};
    Clock::duration ban = FIRST_BAN;
  };

  void work(int64_t turn, int64_t me) {
    int64_t done = 0;
    for (int64_t n = 0; n < count_; ++n) {
      Part& part = parts_[(count_ * me / members_ + n) % count_];
      int64_t free = 2 * turn;
      if (part.state.load(std::memory_order_relaxed) != free ||
          !part.state.compare_exchange_strong(free, free + 1, std::memory_order_relaxed))
        continue;
      // Until this part is done the turn cannot end, and what `what_` points to is there.
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
      if (!pause_a_little(calls) || me != 0) continue;
      const auto now = Clock::now();
      if (begun == Clock::time_point{}) begun = now;
      if (now - begun < TOO_LONG) continue;
      leave_out_late(turn, now);
      begun = now;
    }
  }

  bool left_out(int64_t me) const {
    const auto until = helpers_[me].out_until.load(std::memory_order_relaxed);
    return until && Clock::now().time_since_epoch().count() < until;
  }

  void leave_out_late(int64_t turn, Clock::time_point now) {
    for (int64_t n = 0; n < count_; ++n) {
      const int64_t holder = parts_[n].holder.load(std::memory_order_relaxed);
      if (holder == 0 || parts_[n].state.load(std::memory_order_relaxed) != 2 * turn + 1) continue;
      Helper& late = helpers_[holder];
      if (late.out_until.load(std::memory_order_relaxed) > now.time_since_epoch().count()) continue;
      late.out_until.store((now + late.ban).time_since_epoch().count(), std::memory_order_relaxed);
      late.ban *= 2;
    }
  }

  const int64_t turns_, count_, members_;
  const What* const what_;
  const std::unique_ptr<Part[]> parts_;
  const std::unique_ptr<Helper[]> helpers_;
  alignas(64) std::atomic<int64_t> left_;  // parts of this turn that are not done
  alignas(64) std::atomic<int64_t> turn_{0};
};

// Runs what(turn, part) for every part of turn 0, then of turn 1, and so on, on at most `members` threads.
template <class Pool, class What>
void in_turns(Pool& pool, int64_t members, int64_t turns, int64_t parts, const What& what) {
  const auto team = std::make_shared<Turns<What>>(turns, parts, members, what);
  const auto caller = std::this_thread::get_id();
  for (int64_t n = 1; n < members; ++n) {
    pool.Schedule([team, caller, n] {
      // A full queue runs its tasks on the spot, where a helper would wait for itself.
      if (std::this_thread::get_id() != caller) team->join(n);
    });
  }
  team->join(0);
}
