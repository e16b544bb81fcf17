// Stands in for the header of this name in csrc.
#pragma once

#include "scheduler.h"

namespace cond_detr {

inline char* shared_memory() { return emulation::shared_memory(); }

}  // namespace cond_detr
