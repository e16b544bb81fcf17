// The solver on the emulated device.
#pragma once

#include "batches.h"

DenseAnswer solve_on_device(const DenseBatch& batch);
MatchAnswer match_on_device(const MatchBatch& batch);
