// A fiber: a stack of its own, that runs from when another fiber hands over to it until it hands over itself.
//
// On x86-64 the change of stacks is a few lines of assembly; elsewhere, or with EMULATION_PORTABLE, it is swapcontext,
// which does the same by way of the kernel and takes many times as long. With EMULATION_ASAN or EMULATION_TSAN the
// sanitizer is told of each change: to ThreadSanitizer a fiber is a thread, and a change of fibers orders nothing.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__) || defined(EMULATION_PORTABLE)
#include <ucontext.h>
#define EMULATION_UCONTEXT
#endif
#ifdef EMULATION_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMULATION_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace emulation {

#ifndef EMULATION_UCONTEXT
// Calls of the System V ABI preserve rbx, rbp, r12 to r15 and the stack pointer. So this pushes those registers, leaves
// the stack pointer in *from, takes `to` for it, and pops the registers that the fiber of that stack pushed when it
// handed over. `ret` then goes on where that fiber called this, or in the entry of a new one, see Fiber::prepare.
extern "C" void emulation_change_stack(void** from, void* to);
asm(R"(
.text
.p2align 4
.type emulation_change_stack, @function
emulation_change_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_change_stack, . - emulation_change_stack
)");
#endif

class Fiber {
 public:
  // The one that is running when this is called, on the stack it has.
  Fiber() {
#ifdef EMULATION_TSAN
    tsan_ = __tsan_get_current_fiber();
#endif
  }

  // One that begins in `entry`, which must call begin() first and never return.
  explicit Fiber(void (*entry)()) : size_(kStackBytes - next_colour()) {
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    // the lowest page stays out of reach, so that an overflow ends the program
    if (memory == MAP_FAILED || mprotect(memory, sysconf(_SC_PAGESIZE), PROT_NONE)) {
      std::perror("emulation: no memory for a stack");
      std::abort();
    }
    stack_ = memory;
    prepare(static_cast<char*>(memory), entry);
#ifdef EMULATION_TSAN
    tsan_ = __tsan_create_fiber(0);
#endif
  }

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Hands over from this fiber, which is running, to another. Returns when one hands over to this again.
  void hand_over_to(Fiber& next) {
    previous_ = this;
#ifdef EMULATION_ASAN
    __sanitizer_start_switch_fiber(&fake_stack_, next.stack_, next.size_);
#endif
#ifdef EMULATION_TSAN
    __tsan_switch_to_fiber(next.tsan_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef EMULATION_UCONTEXT
    swapcontext(&context_, &next.context_);
#else
    emulation_change_stack(&stack_pointer_, next.stack_pointer_);
#endif
    arrive(fake_stack_);
  }

  // What a new fiber does first.
  static void begin() { arrive(nullptr); }

 private:
  // Address space; only what is touched becomes memory. Reports of sanitizers need much.
  static constexpr size_t kStackBytes = 256 << 10;

  // Stacks that all end at a multiple of a large power of two would share a few sets of the CPU's caches. So each ends
  // an odd number of cache lines before another.
  static size_t next_colour() {
    static size_t made = 0;
    return made++ * 5 * 64 % (16 << 10);
  }

  // Tells AddressSanitizer that the stacks have changed. It answers where the previous one was, which is the only way
  // to know that of the stack which the program began on.
  static void arrive([[maybe_unused]] void* fake_stack) {
#ifdef EMULATION_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, &previous_->stack_, &previous_->size_);
#endif
  }

  void prepare(char* stack, void (*entry)()) {
#ifdef EMULATION_UCONTEXT
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = size_;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#else
    void** top = reinterpret_cast<void**>(stack + size_);
    *--top = nullptr;  // in place of a return address, with which the stack is aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers
    stack_pointer_ = top;
#endif
  }

  static inline Fiber* previous_ = nullptr;

  const void* stack_ = nullptr;
  size_t size_ = 0;
  [[maybe_unused]] void* fake_stack_ = nullptr;  // AddressSanitizer's
#ifdef EMULATION_UCONTEXT
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
#ifdef EMULATION_TSAN
  void* tsan_;
#endif
};

}  // namespace emulation
