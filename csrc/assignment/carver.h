// Scratch memory: arrays one behind the other in a caller's buffer.
//
// What wants scratch memory takes its arrays from whatever it is given: from a Counter, to find out how much it needs,
// or from a Carver, to get them. So every layout is written down once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "assignment/portable.h"

namespace cond_detr {
inline namespace COND_DETR_ISA {

// Where the first array begins: cache lines and the widest registers do so as well
constexpr size_t kScratchAlignment = 64;

template <class T>
COND_DETR_HD constexpr size_t scratch_bytes(int64_t count) {
  return (sizeof(T) * count + 15) / 16 * 16;
}

// Adds up what arrays need, and what may lie in front of them.
struct Counter {
  size_t bytes = kScratchAlignment;

  template <class T>
  COND_DETR_HD T* take(int64_t count) {
    bytes += scratch_bytes<T>(count);
    return nullptr;
  }
};

class Carver {
 public:
  COND_DETR_HD explicit Carver(void* buffer) {
    // moved as a pointer, so that a compiler still knows which memory it points to
    const size_t behind = reinterpret_cast<uintptr_t>(buffer) % kScratchAlignment;
    next_ = static_cast<char*>(buffer) + (kScratchAlignment - behind) % kScratchAlignment;
  }

  template <class T>
  COND_DETR_HD T* take(int64_t count) {
    T* const array = reinterpret_cast<T*>(next_);
    next_ += scratch_bytes<T>(count);
    return array;
  }

 private:
  char* next_;
};

}  // namespace COND_DETR_ISA
}  // namespace cond_detr
