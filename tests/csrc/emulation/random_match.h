// Batches to match, with everything in them that can be wrong or rare.
#pragma once

#include <random>

#include "batches.h"

MatchBatch random_match_batch(std::mt19937_64& generator);
