// Rectangular linear sum assignment by shortest augmenting paths, over lanes.
//
// D. F. Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on Aerospace and Electronic
// Systems 52(4), 2016. Every row of a (rows <= cols) cost matrix is assigned to a column of its own so that the total
// cost is least. Potentials are kept in double precision, so the optimum is exact for float costs.
//
// Started warm: the row minima are a feasible dual, and rows whose cheapest columns differ are assigned at once. On the
// costs of a trained detector that leaves almost nothing. Of an untrained one, whose targets want the same queries,
// most of what is left is assigned by a few rounds of an auction: D. P. Bertsekas, "The auction algorithm", Annals of
// Operations Research 14, 1988, with exact bids. R. Jonker and A. Volgenant ("A shortest augmenting path algorithm for
// dense and sparse linear assignment problems", Computing 38, 1987) start like this, row by row; here all rows of a
// round bid on the same duals, so that on a GPU each warp of a block has one. Its warps then search together, with the
// columns in registers where they fit (csrc/cuda/block_search.cuh).
//
// Ties: of equally cheap columns a row starts with the one of lowest index. In the auction it bids for an unassigned
// one of them, and looks for that from its own index on, so that rows that are alike go separate ways. In a search it
// takes an unassigned one before an assigned one, then the one of lowest index. Of rows that bid for a column, the one
// of lowest index gets it. The arithmetic of a column does not depend on the number of lanes, so neither does the
// answer.
#pragma once

#include "assignment/carver.h"
#include "assignment/lanes.h"
#include "assignment/types.h"

namespace cond_detr {
inline namespace COND_DETR_ISA {

constexpr int32_t kNone = -1;
// Added to the rank of assigned columns, so that others win ties
constexpr int64_t kAssigned = int64_t{1} << 32;
// Columns are padded to a multiple of the widest lanes there are, a warp
constexpr int64_t kColumnPadding = 32;
// Of the auction: enough to leave few rows of a DETR's problems, and few enough for problems that it does not help.
constexpr int32_t kRounds = 16;

COND_DETR_HD inline int64_t padded_columns(int64_t cols) {
  return (cols + kColumnPadding - 1) / kColumnPadding * kColumnPadding;
}

// Scratch memory of one problem. `padded` arrays have padded_columns(cols) elements, and come first so that they begin
// where registers and cache lines do.
struct Workspace {
  double* col_dual;        // (padded)
  double* distance;        // (padded) shortest known path to each column; infinite once it is settled
  int64_t* predecessor;    // (padded) row before each column on that path
  int64_t* rank;           // (padded) the column itself, plus kAssigned if it is
  int32_t* row_of_col;     // (padded) the assignment, from columns to rows
  int32_t* claim;          // (padded) the latest claim to each column, see claim_of
  double* row_dual;        // (rows)
  double* settled_length;  // (rows) length of the path to each settled column
  double* settled_dual;    // (rows) its dual before the search
  int32_t* settled;        // (rows) settled columns in order
  int32_t* col_of_row;     // (rows) the assignment, from rows to columns; in the auction also what a row bids for
  int32_t* bidder_count;   // (1) for threads, which tell it each other
  // An auction ends before the first search, so it has the memory of what is settled.
  double* raise;     // (rows) of its dual, if the row gets what it bids for
  int32_t* bidders;  // (rows) rows that may bid

  template <class Memory>
  COND_DETR_HD Workspace(Memory& memory, int64_t rows, int64_t cols) {
    const int64_t padded = padded_columns(cols);
    col_dual = memory.template take<double>(padded);
    distance = memory.template take<double>(padded);
    predecessor = memory.template take<int64_t>(padded);
    rank = memory.template take<int64_t>(padded);
    row_of_col = memory.template take<int32_t>(padded);
    claim = memory.template take<int32_t>(padded);
    row_dual = memory.template take<double>(rows);
    settled_length = memory.template take<double>(rows);
    settled_dual = memory.template take<double>(rows);
    settled = memory.template take<int32_t>(rows);
    col_of_row = memory.template take<int32_t>(rows);
    raise = settled_length;
    bidders = settled;
    bidder_count = memory.template take<int32_t>(1);
  }

  static COND_DETR_HD size_t bytes(int64_t rows, int64_t cols) {
    Counter counter;
    Workspace(counter, rows, cols);
    return counter.bytes;
  }
};

// How the solver reads costs: row by row, a register at a time, +inf behind the last column; +inf elsewhere forbids a
// pair.
template <class T>
struct PaddedCosts {
  const T* data;
  int64_t padded;  // columns of a row, its padding included

  template <class L>
  COND_DETR_DEVICE auto load(int64_t row, int64_t first) const {
    return L::load(data + row * padded + first);
  }

  COND_DETR_HD T at(int64_t row, int64_t col) const { return data[row * padded + col]; }
};

// Whether a register of a group of L::kChains holds columns: the last group of wide lanes may reach behind the padding.
template <class L>
COND_DETR_DEVICE bool in_columns(int64_t at, int64_t padded) {
  return kColumnPadding % (L::kChains * L::kWidth) == 0 || at < padded;
}

// The least value seen in each lane, in several chains.
template <class L>
struct LaneMinima {
  decltype(L::all(0.0)) value[L::kChains];
  decltype(L::lane_index()) rank[L::kChains];

  COND_DETR_DEVICE LaneMinima() {
    COND_DETR_UNROLL
    for (int chain = 0; chain < L::kChains; ++chain) {
      value[chain] = L::all(double(INFINITY));
      rank[chain] = L::all(INT64_MAX);
    }
  }

  // Of ranks that only grow, the first of the least values stays. Returns where the other one is better.
  template <class Real, class Int>
  COND_DETR_DEVICE auto see_in_order(int chain, Real other, Int other_rank) {
    const auto better = other < value[chain];
    value[chain] = L::select(better, other, value[chain]);
    rank[chain] = L::select(better, other_rank, rank[chain]);
    return better;
  }

  // Returns where the other one is better.
  template <class Real, class Int>
  COND_DETR_DEVICE auto see(int chain, Real other, Int other_rank) {
    const auto better = (other < value[chain]) | ((other == value[chain]) & (other_rank < rank[chain]));
    value[chain] = L::select(better, other, value[chain]);
    rank[chain] = L::select(better, other_rank, rank[chain]);
    return better;
  }

  COND_DETR_DEVICE Ranked least() {
    COND_DETR_UNROLL
    for (int chain = 1; chain < L::kChains; ++chain) see(0, value[chain], rank[chain]);
    return L::least(value[0], rank[0]);
  }
};

// The least value, its rank, and the least of all others.
struct TwoLeast {
  Ranked first;
  double second;
};

// The two least values seen in each lane, in several chains.
template <class L>
struct LaneTwoMinima {
  LaneMinima<L> first;
  decltype(L::all(0.0)) second[L::kChains];

  COND_DETR_DEVICE LaneTwoMinima() {
    COND_DETR_UNROLL
    for (int chain = 0; chain < L::kChains; ++chain) second[chain] = L::all(double(INFINITY));
  }

  // Of ranks that only grow.
  template <class Real, class Int>
  COND_DETR_DEVICE void see_in_order(int chain, Real other, Int other_rank) {
    const auto before = first.value[chain];
    see_second(chain, L::select(first.see_in_order(chain, other, other_rank), before, other));
  }

  COND_DETR_DEVICE TwoLeast least() {
    COND_DETR_UNROLL
    for (int chain = 1; chain < L::kChains; ++chain) {
      const auto before = first.value[0], other = first.value[chain];
      see_second(0, L::select(first.see(0, other, first.rank[chain]), before, other));
      see_second(0, second[chain]);
    }
    const Ranked least = L::least(first.value[0], first.rank[0]);
    const auto others = L::select(first.rank[0] == L::all(least.rank), second[0], first.value[0]);
    return {least, L::least(others, first.rank[0]).value};
  }

 private:
  template <class Real>
  COND_DETR_DEVICE void see_second(int chain, Real other) {
    second[chain] = L::select(other < second[chain], other, second[chain]);
  }
};

// What a row leaves at the column that it wants in a round. The least of all claims holds: one of the latest round, and
// of these that of the row of lowest index. So nothing has to be cleared between rounds.
COND_DETR_HD inline int32_t claim_of(int32_t row, int32_t round, int32_t rows) { return row - round * rows; }

// Makes the bid of a row: for the column that costs it `least`, duals included, `raise` less than any other.
template <class L>
COND_DETR_DEVICE void make_bid(Workspace& w, int32_t row, int32_t col, double least, double raise, int32_t claim) {
  // With a raise of 0, an assigned column would only change hands. Without another column, or with one that costs too
  // much for a number, the search decides.
  const bool bids =
      least < INFINITY && (raise > 0.0 || w.rank[col] < kAssigned) && w.col_dual[col] - raise > -double(INFINITY);
  w.raise[row] = raise;
  w.col_of_row[row] = bids ? col : kNone;
  if (!bids) return;
  w.row_dual[row] = least;
  L::lower(&w.claim[col], claim);
}

// The first bid of a row, for its cheapest column, of which nothing is raised. The row's dual is infinite if all
// columns are forbidden.
template <class L>
COND_DETR_DEVICE void make_first_bid(Workspace& w, int32_t row, int32_t col, double cost) {
  w.row_dual[row] = cost;
  make_bid<L>(w, row, col, cost, 0.0, claim_of(row, 0, 0));
}

// Finds the cheapest column of a row, and bids for it. False if a cost is NaN or minus infinity.
template <class L, class Costs>
bool find_cheapest(const Costs& costs, int32_t row, int64_t padded, Workspace& w) {
  LaneMinima<L> minima;
  auto valid = L::all(0.0) == L::all(0.0);
  for (int64_t first = 0; first < padded; first += L::kChains * L::kWidth) {
    COND_DETR_UNROLL
    for (int chain = 0; chain < L::kChains; ++chain) {
      const int64_t at = first + chain * L::kWidth;
      if (!in_columns<L>(at, padded)) continue;
      const auto cost = costs.template load<L>(row, at);
      valid = valid & (cost > L::all(-double(INFINITY)));  // NaN compares false with everything
      minima.see_in_order(chain, cost, L::lane_index() + at);
    }
  }
  const Ranked found = minima.least();
  make_first_bid<L>(w, row, static_cast<int32_t>(found.rank), found.value);
  return L::all_of(valid);
}

template <class L>
void clear_columns(Workspace& w, int64_t padded) {
  for (int64_t first = 0; first < padded; first += L::kWidth) {
    L::store(w.col_dual + first, L::all(0.0));
    L::store(w.rank + first, L::lane_index() + first);
  }
  for (int64_t col = 0; col < padded; ++col) w.claim[col] = INT32_MAX;
}

COND_DETR_HD inline void assign(Workspace& w, int32_t row, int32_t col) {
  w.col_of_row[row] = col;
  w.row_of_col[col] = row;
  w.rank[col] = col + kAssigned;
}

// Gives a row the column that it has bid for, if its claim holds. Returns the row that may bid in the next round: the
// row itself, or the one that had the column before, or kNone. A row that did not bid waits for its search.
COND_DETR_HD inline int32_t settle_bid(Workspace& w, int32_t row, int32_t claim) {
  const int32_t col = w.col_of_row[row];
  if (col == kNone) return kNone;
  if (w.claim[col] != claim) {
    w.col_of_row[row] = kNone;
    return row;
  }
  w.row_dual[row] += w.raise[row];
  w.col_dual[col] -= w.raise[row];
  const int32_t owner = w.rank[col] < kAssigned ? kNone : w.row_of_col[col];
  if (owner != kNone) w.col_of_row[owner] = kNone;
  assign(w, row, col);
  return owner;
}

// The first unassigned column that costs a row `price`, from the row's own index on, or kNone.
template <class Costs>
int32_t find_unassigned(const Costs& costs, int32_t row, double price, int64_t padded, const Workspace& w) {
  for (int64_t i = 0; i < padded; ++i) {
    const int64_t col = row + i < padded ? row + i : row + i - padded;
    if (w.rank[col] < kAssigned && costs.at(row, col) - w.col_dual[col] == price) return static_cast<int32_t>(col);
  }
  return kNone;
}

// Bids for the column that is cheapest to a row, as much as makes the second cheapest one equally good.
template <class L, class Costs>
void bid(const Costs& costs, int32_t row, int32_t claim, int64_t padded, Workspace& w) {
  LaneTwoMinima<L> minima;
  for (int64_t first = 0; first < padded; first += L::kChains * L::kWidth) {
    COND_DETR_UNROLL
    for (int chain = 0; chain < L::kChains; ++chain) {
      const int64_t at = first + chain * L::kWidth;
      if (!in_columns<L>(at, padded)) continue;
      const auto price = costs.template load<L>(row, at) - L::load(w.col_dual + at);
      minima.see_in_order(chain, price, L::lane_index() + at);
    }
  }
  const TwoLeast found = minima.least();
  const double raise = found.second - found.first.value;
  int32_t col = static_cast<int32_t>(found.first.rank);
  if (raise == 0.0) {
    const int32_t other = find_unassigned(costs, row, found.first.value, padded, w);
    col = other == kNone ? col : other;
  }
  make_bid<L>(w, row, col, found.first.value, raise, claim);
}

// Settles the bids of a round, in w.bidders, and leaves those there who may bid in the next one. Returns how many.
inline int32_t settle_round(int32_t round, int32_t count, int32_t rows, Workspace& w) {
  int32_t left = 0;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t row = w.bidders[i], next = settle_bid(w, row, claim_of(row, round, rows));
    if (next != kNone) w.bidders[left++] = next;
  }
  return left;
}

// Lowers the distances of columns that are nearer through `row`, and returns the nearest column.
template <class L, class Costs>
COND_DETR_DEVICE Ranked relax(const Costs& costs, double base, int32_t row, int64_t padded, Workspace& w) {
  LaneMinima<L> minima;
  // copies, which no store can change
  const double* const col_dual = w.col_dual;
  const int64_t* const ranks = w.rank;
  double* const distances = w.distance;
  int64_t* const predecessors = w.predecessor;
  for (int64_t first = 0; first < padded; first += L::kChains * L::kWidth) {
    decltype(L::all(0.0)) distance[L::kChains];
    decltype(L::lane_index()) predecessor[L::kChains];
    COND_DETR_UNROLL
    for (int chain = 0; chain < L::kChains; ++chain) {
      const int64_t at = first + chain * L::kWidth;
      if (!in_columns<L>(at, padded)) continue;
      // a settled column's dual is -inf, which puts it out of reach
      const auto through = L::all(base) + costs.template load<L>(row, at) - L::load(col_dual + at);
      const auto before = L::load(distances + at);
      const auto nearer = through < before;
      distance[chain] = L::select(nearer, through, before);
      predecessor[chain] = L::select(nearer, L::all(int64_t{row}), L::load(predecessors + at));
      minima.see(chain, distance[chain], L::load(ranks + at));
    }
    // after all loads, none of which then waits for a store
    COND_DETR_UNROLL
    for (int chain = 0; chain < L::kChains; ++chain) {
      const int64_t at = first + chain * L::kWidth;
      if (!in_columns<L>(at, padded)) continue;
      L::store(distances + at, distance[chain]);
      L::store(predecessors + at, predecessor[chain]);
    }
  }
  return minima.least();
}

// Dijkstra over reduced costs from an unassigned row to the nearest unassigned column, which is returned, or kNone if
// there is none. `settled` columns, that one not among them, are counted in `count`; `length` is the path's.
template <class L, class Costs>
COND_DETR_DEVICE int32_t shortest_path(const Costs& costs, int32_t start, int64_t padded, Workspace& w, int32_t& count,
                                       double& length) {
  for (int64_t first = 0; first < padded; first += L::kWidth) L::store(w.distance + first, L::all(double(INFINITY)));
  length = 0.0;
  count = 0;
  for (int32_t row = start;;) {
    const Ranked nearest = relax<L>(costs, length - w.row_dual[row], row, padded, w);
    if (nearest.value == INFINITY) return kNone;
    length = nearest.value;
    if (nearest.rank < kAssigned) return static_cast<int32_t>(nearest.rank);
    const int32_t col = static_cast<int32_t>(nearest.rank - kAssigned);
    L::once([&] {
      w.settled[count] = col;
      w.settled_length[count] = length;
      w.settled_dual[count] = w.col_dual[col];
      w.col_dual[col] = -double(INFINITY);
      w.distance[col] = double(INFINITY);
    });
    ++count;
    row = w.row_of_col[col];
  }
}

// Gives settled columns their duals back, moved so that edges of the search tree become tight and none negative.
template <class L>
COND_DETR_DEVICE void update_duals(int32_t start, int32_t count, double length, Workspace& w) {
  L::once([&] {
    w.row_dual[start] += length;
    for (int32_t i = 0; i < count; ++i) {
      const int32_t col = w.settled[i], row = w.row_of_col[col];
      const double slack = length - w.settled_length[i];
      w.col_dual[col] = w.settled_dual[i] - slack;
      w.row_dual[row] += slack;
    }
  });
}

// Turns the assignment around along the path that ends in column `end`.
COND_DETR_HD inline void augment_path(int32_t start, int32_t end, Workspace& w) {
  for (int32_t col = end;;) {
    const int32_t row = static_cast<int32_t>(w.predecessor[col]);
    const int32_t next = w.col_of_row[row];
    assign(w, row, col);
    if (row == start) return;
    col = next;
  }
}

template <class L>
COND_DETR_DEVICE void augment(int32_t start, int32_t end, Workspace& w) {
  L::once([&] { augment_path(start, end, w); });
}

// Assigns the rows that have no column yet, by a search each. False if one cannot have any.
template <class L, class Costs>
COND_DETR_DEVICE bool assign_others(const Costs& costs, int32_t rows, int64_t padded, Workspace& w) {
  for (int32_t row = 0; row < rows; ++row) {
    if (w.col_of_row[row] != kNone) continue;
    int32_t count;
    double length;
    const int32_t end = shortest_path<L>(costs, row, padded, w, count, length);
    if (end == kNone) return false;
    update_duals<L>(row, count, length, w);
    augment<L>(row, end, w);
  }
  return true;
}

// Finds duals that are feasible, and assigns rows to columns where these make edges tight: row minima, then an auction.
template <class L, class Costs>
Status start(const Costs& costs, int32_t rows, int64_t padded, Workspace& w) {
  clear_columns<L>(w, padded);
  bool feasible = true;
  for (int32_t row = 0; row < rows; ++row) {
    if (!find_cheapest<L>(costs, row, padded, w)) return Status::kSanitised;
    feasible = feasible && w.row_dual[row] < INFINITY;
    w.bidders[row] = row;
  }
  if (!feasible) return Status::kInfeasible;
  int32_t count = settle_round(0, rows, rows, w);
  for (int32_t round = 1; round <= kRounds && count > 0; ++round) {
    for (int32_t i = 0; i < count; ++i) {
      const int32_t row = w.bidders[i];
      bid<L>(costs, row, claim_of(row, round, rows), padded, w);
    }
    count = settle_round(round, count, rows, w);
  }
  return Status::kOk;
}

// Solves a problem with rows <= cols; the answer is `w.col_of_row`.
template <class L, class Costs>
Status solve(const Costs& costs, int32_t rows, int64_t padded, Workspace& w) {
  const Status started = start<L>(costs, rows, padded, w);
  if (started != Status::kOk) return started;
  return assign_others<L>(costs, rows, padded, w) ? Status::kOk : Status::kInfeasible;
}

}  // namespace COND_DETR_ISA
}  // namespace cond_detr
