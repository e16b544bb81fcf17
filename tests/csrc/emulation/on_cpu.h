// The same solver on the CPU, problem by problem, with its SIMD kernels.
#pragma once

#include "batches.h"

DenseAnswer solve_on_cpu(const DenseBatch& batch);
MatchAnswer match_on_cpu(const MatchBatch& batch);
