#include "scheduler.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "fiber.h"

emulation::Index threadIdx, blockIdx, blockDim;

namespace emulation {

Settings settings;

namespace {

constexpr unsigned kAllLanes = ~0u;
// As many threads as a block can have
constexpr unsigned kMostWarps = 32;

// What one thread has done until here, another one sees that comes after it: an address that ThreadSanitizer knows.
class Order {
 public:
  void publish() {
#ifdef EMULATION_TSAN
    __tsan_release(&address_);
#endif
  }
  void observe() {
#ifdef EMULATION_TSAN
    __tsan_acquire(&address_);
#endif
  }

 private:
  alignas(8) char address_ = 0;
};

// Two of what a meeting needs, by turns: a thread may be in the next meeting before another has left this one, but
// never in the one after that.
template <class T>
struct Alternating {
  T of[2] = {};

  T& operator[](unsigned meeting) { return of[meeting % 2]; }
};

struct Block;
struct Warp;

struct Thread {
  Fiber* fiber = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  Index index;
  unsigned lane = 0;
  unsigned warp_meetings = 0, block_meetings = 0, team_meetings = 0;  // until now
};

// Sets of lanes are bits. A lane is ready, or in a meeting, or has left.
struct Warp {
  Thread lanes[kWarpSize];
  uint32_t ready = 0, in_warp_meeting = 0, in_block_meeting = 0, in_team_meeting = 0, left = 0;
  bool listed = false;  // by the scheduler
  Place place{nullptr};
  Alternating<uint64_t[kWarpSize]> values;
  Alternating<Order> order;
};

struct Block {
  Index index;
  std::unique_ptr<char[]> shared;
  std::unique_ptr<Warp[]> warps;
  unsigned warp_count, threads;
  unsigned waiting = 0, left = 0;
  Place place{nullptr};
  Alternating<unsigned> votes;
  Alternating<Order> order;
  unsigned in_team = 0, team_size = 0;
  Place team_place{nullptr};
  Alternating<Order> team_order;

  Block(unsigned x, unsigned threads, size_t shared_bytes)
      : index{x}, warp_count(threads / kWarpSize), threads(threads) {
    shared.reset(new char[shared_bytes]);  // not a byte more, so that AddressSanitizer notices what lies behind
    std::memset(shared.get(), settings.garbage, shared_bytes);
    warps.reset(new Warp[warp_count]);
    for (unsigned i = 0; i < threads; ++i) {
      Warp& warp = warps[i / kWarpSize];
      Thread& thread = warp.lanes[i % kWarpSize];
      thread.block = this;
      thread.warp = &warp;
      thread.index = {i};
      thread.lane = i % kWarpSize;
    }
  }
};

// SplitMix64, of which no one else has a copy.
uint64_t random_bits() {
  uint64_t bits = settings.seed += 0x9e3779b97f4a7c15;
  bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
  bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
  return bits ^ bits >> 31;
}

unsigned random_below(unsigned count) { return static_cast<uint32_t>(random_bits()) * uint64_t{count} >> 32; }

// Blocks that are under way, and whose turn it is.
class Scheduler {
 public:
  static constexpr unsigned kMostBlocks = 3;  // at the same time

  void run(std::vector<std::unique_ptr<Block>>& blocks, const std::function<void()>& body);

  Thread& current() { return *current_; }
  // Hands over to any thread that is ready, maybe the current one. Returns when it is the current one's turn again.
  void pause();
  // Threads of the warp have become ready.
  void wake(Warp& warp);
  // Ends the current thread.
  void leave();

 private:
  void start(Block& block);
  Thread& choose();
  Warp& choose_warp();
  void take_turn(Thread& thread);
  [[noreturn]] static void live();

  Fiber program_;               // on which run() is called
  std::vector<Fiber*> unused_;  // fibers; they wait for a thread in live()
  const std::function<void()>* body_ = nullptr;
  Thread* current_ = nullptr;
  bool block_ended_ = false;
  std::vector<Warp*> ready_;  // warps with threads that are ready, and some that had one when last looked at
  size_t chosen_ = 0;         // of these
  unsigned turns_left_ = 0;   // before another one is chosen
  Order begin_, end_;
};

// Never destroyed: fibers wait in it until the program ends.
Scheduler& scheduler = *new Scheduler;

void Scheduler::run(std::vector<std::unique_ptr<Block>>& blocks, const std::function<void()>& body) {
  body_ = &body;
  ready_.clear();
  turns_left_ = 0;
  // threads allocate nothing: it would be theirs to ThreadSanitizer
  ready_.reserve(blocks.size() * kMostWarps);
  begin_.publish();
  const unsigned most = 1 + random_below(kMostBlocks);
  size_t started = 0, ended = 0;
  while (ended < blocks.size()) {
    while (started < blocks.size() && started - ended < most) start(*blocks[started++]);
    block_ended_ = false;
    Thread& thread = choose();
    take_turn(thread);
    program_.hand_over_to(*thread.fiber);
    ended += block_ended_;
  }
  end_.observe();
}

void Scheduler::start(Block& block) {
  for (unsigned i = 0; i < block.threads; ++i) {
    if (unused_.empty()) unused_.push_back(new Fiber(live));
    block.warps[i / kWarpSize].lanes[i % kWarpSize].fiber = unused_.back();
    unused_.pop_back();
  }
  unused_.reserve(unused_.size() + kMostBlocks * kMostWarps * kWarpSize);  // for threads that leave
  for (unsigned i = 0; i < block.warp_count; ++i) wake(block.warps[i]);
}

void Scheduler::live() {
  Fiber::begin();
  for (;;) {
    scheduler.begin_.observe();
    (*scheduler.body_)();
    scheduler.end_.publish();
    scheduler.leave();
  }
}

void Scheduler::leave() {
  Thread& me = *current_;
  Warp& warp = *me.warp;
  Block& block = *me.block;
  if (warp.in_warp_meeting) fail("the thread leaves, and others of its warp wait for it in %s", warp.place.operation);
  if (block.waiting) fail("the thread leaves, and others of its block wait for it in %s", block.place.operation);
  if (warp.in_team_meeting) fail("the thread leaves, and others of its team wait in %s", block.team_place.operation);
  warp.ready &= ~(1u << me.lane);
  warp.left |= 1u << me.lane;
  unused_.push_back(me.fiber);
  if (++block.left < block.threads) {
    pause();
  } else {
    block_ended_ = true;
    me.fiber->hand_over_to(program_);
  }
}

void Scheduler::wake(Warp& warp) {
  warp.ready = kAllLanes;
  if (!warp.listed) ready_.push_back(&warp);
  warp.listed = true;
}

void Scheduler::pause() {
  Thread& me = *current_;
  Thread& next = choose();
  if (&next == &me) return;
  take_turn(next);
  me.fiber->hand_over_to(*next.fiber);
}

void Scheduler::take_turn(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
}

Thread& Scheduler::choose() {
  Warp& warp = choose_warp();
  // the first lane that is ready, from any one on
  const unsigned shift = random_below(kWarpSize);
  const uint32_t rotated = warp.ready >> shift | static_cast<uint32_t>(uint64_t{warp.ready} << 32 >> shift);
  return warp.lanes[(__builtin_ctz(rotated) + shift) % kWarpSize];
}

// A warp goes on for some turns of its threads, few or many, so that others are far behind or ahead.
Warp& Scheduler::choose_warp() {
  while (!ready_.empty()) {
    if (turns_left_ == 0) {
      chosen_ = random_below(ready_.size());
      turns_left_ = 1 + random_below(1u << random_below(12));
    }
    if (ready_[chosen_]->ready) {
      --turns_left_;
      return *ready_[chosen_];
    }
    ready_[chosen_]->listed = false;
    ready_[chosen_] = ready_.back();
    ready_.pop_back();
    turns_left_ = 0;
  }
  fail("no thread can go on: all that have not left wait for others");
}

}  // namespace

void fail(const char* format, ...) {
  std::fprintf(stderr, "emulation: block %u, thread %u: ", blockIdx.x, threadIdx.x);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::_Exit(70);  // on a thread's stack there is nothing to clean up
}

void run_grid(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& thread) {
  if (threads == 0 || threads % kWarpSize || threads > kMostWarps * kWarpSize) fail("not a number of whole warps");
  blockDim = {threads, 1, 1};
  std::vector<std::unique_ptr<Block>> grid;
  for (unsigned x = 0; x < blocks; ++x) grid.emplace_back(new Block(x, threads, shared_bytes));
  for (size_t i = grid.size(); i > 1; --i) std::swap(grid[i - 1], grid[random_below(i)]);
  scheduler.run(grid, thread);
}

char* shared_memory() { return scheduler.current().block->shared.get(); }

const uint64_t* exchange_in_warp(Place place, uint64_t value) {
  Thread& me = scheduler.current();
  Warp& warp = *me.warp;
  const uint32_t my_bit = 1u << me.lane;
  if (warp.left) fail("waits in %s for threads of its warp that have left", place.operation);
  if (warp.in_block_meeting) fail("waits in %s, others of its warp wait for its block", place.operation);
  if (warp.in_team_meeting) fail("waits in %s, others of its warp wait for their team", place.operation);
  if (warp.in_warp_meeting == 0) warp.place = place;
  if (!(warp.place == place)) {
    fail("waits in %s (%u), others of its warp in %s (%u)", place.operation, place.argument, warp.place.operation,
         warp.place.argument);
  }
  const unsigned meeting = me.warp_meetings++;
  warp.values[meeting][me.lane] = value;
  warp.in_warp_meeting |= my_bit;
  warp.ready &= ~my_bit;
  if (warp.in_warp_meeting == kAllLanes) {
    warp.in_warp_meeting = 0;
    scheduler.wake(warp);
  }
  scheduler.pause();
  return warp.values[meeting];
}

void meet_in_warp(Place place) {
  Thread& me = scheduler.current();
  Warp& warp = *me.warp;
  const unsigned meeting = me.warp_meetings;
  warp.order[meeting].publish();
  exchange_in_warp(place, 0);
  warp.order[meeting].observe();
}

unsigned meet_in_block(Place place, bool vote) {
  Thread& me = scheduler.current();
  Warp& warp = *me.warp;
  Block& block = *me.block;
  const uint32_t my_bit = 1u << me.lane;
  if (block.left) fail("waits in %s for threads of its block that have left", place.operation);
  if (warp.in_warp_meeting) fail("waits in %s, others of its warp in %s", place.operation, warp.place.operation);
  if (warp.in_team_meeting) fail("waits in %s, others of its warp wait for their team", place.operation);
  if (block.waiting == 0) block.place = place;
  if (!(block.place == place)) {
    fail("waits in %s, others of its block in %s", place.operation, block.place.operation);
  }
  const unsigned meeting = me.block_meetings++;
  block.votes[meeting] += vote;
  block.order[meeting].publish();
  warp.in_block_meeting |= my_bit;
  warp.ready &= ~my_bit;
  if (++block.waiting == block.threads) {
    block.waiting = 0;
    block.votes[meeting + 1] = 0;
    for (unsigned i = 0; i < block.warp_count; ++i) {
      block.warps[i].in_block_meeting = 0;
      scheduler.wake(block.warps[i]);
    }
  }
  scheduler.pause();
  block.order[meeting].observe();
  return block.votes[meeting];
}

void meet_in_team(Place place, unsigned count) {
  Thread& me = scheduler.current();
  Warp& warp = *me.warp;
  Block& block = *me.block;
  const uint32_t my_bit = 1u << me.lane;
  if (warp.in_warp_meeting) fail("waits in %s, others of its warp in %s", place.operation, warp.place.operation);
  if (warp.in_block_meeting) fail("waits in %s, others of its warp wait for its block", place.operation);
  if (count == 0 || count % kWarpSize || count > block.threads) fail("a team of %u threads", count);
  if (block.in_team == 0) block.team_place = place, block.team_size = count;
  if (!(block.team_place == place) || block.team_size != count) {
    fail("waits in %s (%u) with %u, others of its block in %s (%u) with %u", place.operation, place.argument, count,
         block.team_place.operation, block.team_place.argument, block.team_size);
  }
  const unsigned meeting = me.team_meetings++;
  block.team_order[meeting].publish();
  warp.in_team_meeting |= my_bit;
  warp.ready &= ~my_bit;
  if (++block.in_team == count) {
    block.in_team = 0;
    for (unsigned i = 0; i < block.warp_count; ++i) {
      Warp& member = block.warps[i];
      if (member.in_team_meeting == 0) continue;
      if (member.in_team_meeting != kAllLanes) fail("a part of a warp in a team, in %s", place.operation);
      member.in_team_meeting = 0;
      scheduler.wake(member);
    }
  }
  scheduler.pause();
  block.team_order[meeting].observe();
}

}  // namespace emulation
