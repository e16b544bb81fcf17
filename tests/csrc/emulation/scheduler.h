// Runs the threads of CUDA blocks as fibers of one CPU thread, which meet in barriers, votes and reductions, as on a
// GPU.
//
// Whose turn it is, is random: between two meetings the threads of a warp go on one after another in any order, which
// is what independent thread scheduling allows and what a missing __syncwarp leaves to chance; warps, and several
// blocks of a grid, run in turns of any length. All threads of a warp or block must meet in the same operation, and
// none may leave before the others are done with it; anything else ends the program with a message.
//
// This is the hardware's part, so sanitizers do not watch it, and to ThreadSanitizer only barriers order the threads.
// Nothing in scheduler.cpp that a thread runs may be a template of the standard library that others use as well: the
// linker might take their copy, which is watched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulation {

constexpr unsigned kWarpSize = 32;

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

struct Settings {
  size_t shared_bytes_per_block = 232448;  // that a kernel may be allowed to use
  int garbage = 0xff;                      // what memory is full of
  uint64_t seed = 0;                       // of the order in which threads run
};
extern Settings settings;

// Runs a grid of blocks, with that much shared memory each; `thread` is the kernel, its arguments bound.
void run_grid(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& thread);

// The rest is called by threads.

// The shared memory of the block.
char* shared_memory();

// Where threads meet: the operation, and what of its arguments has to be the same for all.
struct Place {
  const char* operation;
  unsigned argument = 0;

  bool operator==(const Place& other) const { return operation == other.operation && argument == other.argument; }
};

// Waits for the other threads of the warp, and sees what they have written. That is all that orders memory in a warp.
void meet_in_warp(Place place);

// Waits for the other threads of the warp, for a value that each brings; they are valid until the next meeting.
const uint64_t* exchange_in_warp(Place place, uint64_t value);

// Waits for the other threads of the block. How many of them have brought true.
unsigned meet_in_block(Place place, bool vote = false);

// Waits for so many threads of the block, in whole warps. There is one such team at a time.
void meet_in_team(Place place, unsigned count);

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emulation

// As CUDA has them, of the thread whose turn it is.
extern emulation::Index threadIdx, blockIdx, blockDim;
