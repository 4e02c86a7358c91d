// Threads that run the turns of a loop together (threads.h of kernels/native), some of them delayed.
// test_native.py builds and runs it, with a thread sanitizer if the compiler has one.

#include "threads.h"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// As many threads as XLA's pool has, which begin a task after a delay, or never.
struct Pool {
  int64_t threads;
  milliseconds delay{0};
  bool asleep = false;
  std::vector<std::thread> running;

  int64_t num_threads() const { return threads; }
  void Schedule(std::function<void()> task) {
    if (asleep) return;
    running.emplace_back([this, task] {
      std::this_thread::sleep_for(delay);
      task();
    });
  }
  ~Pool() {
    for (auto& thread : running) thread.join();
  }
};

void demand(bool truth, const char* wrong) {
  if (truth) return;
  std::fprintf(stderr, "%s\n", wrong);
  std::exit(1);
}

// Each part of a turn needs all of the turn before it; returns the seconds that the turns took.
double turns(Pool& pool, int64_t members, int64_t turns, int64_t parts, std::function<void()> hinder) {
  std::vector<int64_t> now(parts, 0), next(parts);
  std::atomic<int64_t> out_of_order{0};
  const auto begun = Clock::now();
  run_turns(pool, members, turns, parts, [&](int64_t turn, int64_t part) {
    const auto& from = turn % 2 ? next : now;
    for (int64_t n = 0; n < parts; ++n) out_of_order += from[n] != turn;
    (turn % 2 ? now : next)[part] = turn + 1;
    hinder();
  });
  const std::chrono::duration<double> took = Clock::now() - begun;
  const auto& last = turns % 2 ? next : now;
  for (int64_t n = 0; n < parts; ++n) out_of_order += last[n] != turns;
  demand(out_of_order == 0, "a part was taken before the turn before it was over");
  return took.count();
}

int main() {
  const auto nothing = [] {};
  for (int64_t members = 1; members < 7; ++members)
    for (int64_t parts = members; parts < 9; parts += 3) {
      Pool pool{members};
      turns(pool, members, 3000, parts, nothing);
    }
  {
    Pool pool{4};
    pool.asleep = true;
    turns(pool, 4, 1000, 5, nothing);
  }
  {
    Pool pool{4, milliseconds(50)};  // the helpers come when all is over
    turns(pool, 4, 100, 5, nothing);
  }
  {
    // A helper that falls asleep in each part that it takes: it is left out, first for 16 ms, then for 32
    // and so on, instead of holding up each turn. It sleeps for longer than a busy machine suspends the
    // caller, who must be awake to notice it.
    Pool pool{2};
    const auto caller = std::this_thread::get_id();
    std::atomic<int64_t> delays{0};
    const double took = turns(pool, 2, 2000, 4, [&] {
      if (std::this_thread::get_id() == caller) return std::this_thread::sleep_for(std::chrono::microseconds(50));
      ++delays;
      std::this_thread::sleep_for(milliseconds(50));
    });
    std::printf("%ld delays in %.3f s\n", delays.load(), took);
    demand(delays > 0, "no helper took part");
    demand(delays < 25, "a helper that holds up the others was not left out");
  }
  return 0;
}
