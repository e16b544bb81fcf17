// Problems in threads: started for a call, gone after it.
//
// The NumPy module and the torch operator share this, and not OpenMP: its threads wait for each other while they spin,
// and where other jobs have the cores a call then takes a hundred times as long. Nothing is left that a fork would
// lose.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace cond_detr {

// Starting a thread costs tens of microseconds: as much as solving problems of so many entries, or fewer whose costs
// have to be computed.
constexpr int64_t kSolvedPerThread = 20000;
constexpr int64_t kMatchedPerThread = 10000;

// How many threads `problems` of `entries` costs each are worth, of `most`.
inline int64_t threads_for(int64_t problems, int64_t entries, int64_t per_thread, int64_t most) {
  const double worth = static_cast<double>(problems) * static_cast<double>(entries) / per_thread;
  const int64_t wanted = worth < static_cast<double>(most) ? static_cast<int64_t>(worth) : most;
  return std::max<int64_t>(1, std::min(problems, wanted));
}

// Calls work(problem, buffer) for all problems below count, with `bytes` of scratch memory for each thread. Threads
// take the next problem when they are done with one: a thread that wakes up late delays nothing. If no more of them can
// be started, fewer do it. Raises std::bad_alloc before anything is started, not later.
template <class Work>
void for_each_problem(int64_t count, int64_t threads, size_t bytes, const Work& work) {
  const std::unique_ptr<char[]> buffers(new char[threads * bytes]);
  std::atomic<int64_t> next{0};
  const auto run = [&](int64_t thread) {
    for (int64_t problem; (problem = next++) < count;) work(problem, buffers.get() + thread * bytes);
  };
  std::vector<std::thread> started;
  started.reserve(threads);
  try {
    for (int64_t thread = 1; thread < threads; ++thread) started.emplace_back(run, thread);
  } catch (const std::system_error&) {
  } catch (const std::bad_alloc&) {
  }
  run(0);
  for (std::thread& thread : started) thread.join();
}

}  // namespace cond_detr
