// The kernels of AttentionKernels, over any kind of 16 lanes. Included only by attention_<isa>.cc.
//
// Besides the operations of kernels/cpu/isa/lanes_scalar.h and the loads of segment_loads.h the
// lanes have a mask by position (attention_scalar.cc shows each in its simplest form), and
// kAccumulators: sums of 16 lanes that fit the registers beside what a step loads.
#pragma once

#include "kernels/cpu/attention/attention_kernels.h"
#include "kernels/cpu/attention/segment_loads.h"
#include "kernels/cpu/isa/row_kernels.h"

namespace keyline {
namespace {

constexpr int kGroupTiles = 4;
constexpr int kGroupSlots = kGroupTiles * kLanes;  // unit in which slots are skipped
constexpr int kGroups = kSegmentSlots / kGroupSlots;
constexpr int kMaxBlockRows = 6;

// How many of `most` columns of sums fit beside kRows rows.
template <class L, int kRows>
constexpr int ColumnsThatFit() {
  return 4 * kRows <= L::kAccumulators ? 4 : 2 * kRows <= L::kAccumulators ? 2 : 1;
}

// ---- q . k --------------------------------------------------------------------------------------

// out[r][16 t + lane] = q[r] . k of that slot, for kRows rows and kTiles tiles from `first` on.
template <class L, class Tile, int kRows, int kTiles>
void DotBlock(const SegmentMemory& m, int64_t first, const float* const* q, float* out,
              int64_t out_stride) {
  using V = typename L::V;
  Tile tile[kTiles];
  V sum[kRows][kTiles];
  const float* row[kRows];
#pragma GCC unroll 8
  for (int t = 0; t < kTiles; ++t) tile[t].Open(m, first + t);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    row[r] = q[r];
#pragma GCC unroll 8
    for (int t = 0; t < kTiles; ++t) sum[r][t] = L::Set(0.0f);
  }
  for (int begin = 0; begin < m.head_dim;) {
    int count = 0;
#pragma GCC unroll 8
    for (int t = 0; t < kTiles; ++t) count = tile[t].Enter(begin, m.head_dim);
    const int end = begin + count;
    for (int d = begin; d < end; ++d) {
      V k[kTiles];
#pragma GCC unroll 8
      for (int t = 0; t < kTiles; ++t) k[t] = tile[t].Load(d);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const V x = L::Set(row[r][d]);
#pragma GCC unroll 8
        for (int t = 0; t < kTiles; ++t) sum[r][t] = L::MulAdd(x, k[t], sum[r][t]);
      }
    }
    begin = end;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < kTiles; ++t) L::Store(out + r * out_stride + t * kLanes, sum[r][t]);
  }
}

// All rows against the tiles of one group.
template <class L, class Tile, int kRows>
void DotGroup(const SegmentMemory& m, int64_t group, int rows, const float* const* q, float* out,
              int64_t out_stride) {
  int r = 0;
  for (; r + kRows <= rows; r += kRows) {
    constexpr int kTiles = ColumnsThatFit<L, kRows>();
    for (int t = 0; t < kGroupTiles; t += kTiles) {
      DotBlock<L, Tile, kRows, kTiles>(m, group * kGroupTiles + t, q + r,
                                       out + r * out_stride + group * kGroupSlots + t * kLanes,
                                       out_stride);
    }
  }
  if constexpr (kRows > 1) {
    if (r < rows) {
      DotGroup<L, Tile, kRows - 1>(m, group, rows - r, q + r, out + r * out_stride, out_stride);
    }
  }
}

// ---- Which slots are seen -----------------------------------------------------------------------

// A query at p sees positions in (low, p].
int32_t LowestSeen(int32_t p, int32_t window) {
  return window > 0 && p - window > -1 ? p - window : -1;
}

enum class Seen : uint8_t { kNone, kSome, kAll };

// For each group, whether the rows see none, some or all of its slots.
void Classify(const SegmentMemory& m, const LogitRule& rule, int rows, const int32_t* q_positions,
              Seen* seen) {
  int32_t first_p = q_positions[0];
  int32_t last_p = first_p;
  for (int r = 1; r < rows; ++r) {
    first_p = q_positions[r] < first_p ? q_positions[r] : first_p;
    last_p = q_positions[r] > last_p ? q_positions[r] : last_p;
  }
  for (int g = 0; g < kGroups; ++g) {
    seen[g] = Seen::kNone;
    if (g * kGroupSlots >= m.slots) continue;
    const int32_t* position = m.positions + g * kGroupSlots;
    int32_t lowest = position[0];
    int32_t highest = lowest;
    for (int j = 1; j < kGroupSlots; ++j) {
      lowest = position[j] < lowest ? position[j] : lowest;
      highest = position[j] > highest ? position[j] : highest;
    }
    // Empty slots are at -1 and so never seen.
    if (lowest > last_p || highest <= LowestSeen(first_p, rule.window)) continue;
    const bool all = highest <= first_p && lowest > LowestSeen(last_p, rule.window);
    seen[g] = all ? Seen::kAll : Seen::kSome;
  }
}

// Logits out of dot products; the same operations for every slot.
template <class L>
typename L::V Logit(const LogitRule& rule, typename L::V dot) {
  using V = typename L::V;
  const V x = L::Mul(dot, L::Set(rule.scale));
  if (rule.softcap == 0) return x;
  // c tanh(x / c), tanh u = 1 - 2 / (e^2u + 1)
  const V e = Exp<L>(L::Mul(x, L::Set(2.0f / rule.softcap)));
  const V one = L::Set(1.0f);
  return L::Mul(L::Sub(one, L::Div(L::Set(2.0f), L::Add(e, one))), L::Set(rule.softcap));
}

template <class L>
typename L::V Visible(const SegmentMemory& m, int slot, int32_t low, int32_t high, typename L::V v,
                      typename L::V other) {
  return L::IfWithin(m.positions + slot, low, high, v, other);
}

template <class L>
float MaxOfLanes(typename L::V v) {
  float lane[kLanes];
  L::Store(lane, v);
  float largest = lane[0];
  for (int i = 1; i < kLanes; ++i) largest = lane[i] > largest ? lane[i] : largest;
  return largest;
}

// One row of dot products becomes weights exp(logit - m); gives m and l.
template <class L>
void SoftmaxRow(const SegmentMemory& m, const LogitRule& rule, const Seen* seen, int32_t p,
                float* row, float* row_max, float* row_sum) {
  using V = typename L::V;
  const int32_t low = LowestSeen(p, rule.window);
  const V lowest = L::Set(-kInfinity);
  const V zero = L::Set(0.0f);
  V largest = lowest;
  for (int g = 0; g < kGroups; ++g) {
    if (seen[g] == Seen::kNone) continue;
    for (int j = g * kGroupSlots; j < (g + 1) * kGroupSlots; j += kLanes) {
      V x = Logit<L>(rule, L::Load(row + j));
      if (seen[g] == Seen::kSome) x = Visible<L>(m, j, low, p, x, lowest);
      L::Store(row + j, x);
      largest = L::Max(x, largest);
    }
  }
  const float max = MaxOfLanes<L>(largest);
  const V shift = L::Set(max == -kInfinity ? 0.0f : max);
  V sum = zero;
  for (int g = 0; g < kGroups; ++g) {
    if (seen[g] == Seen::kNone) continue;
    for (int j = g * kGroupSlots; j < (g + 1) * kGroupSlots; j += kLanes) {
      V x = L::Sub(L::Load(row + j), shift);
      if (seen[g] == Seen::kSome) {
        // Not exp of minus infinity: subnormal results are slow.
        x = Visible<L>(m, j, low, p, x, zero);
        x = Visible<L>(m, j, low, p, Exp<L>(x), zero);
      } else {
        x = Exp<L>(x);
      }
      L::Store(row + j, x);
      sum = L::Add(sum, x);
    }
  }
  *row_max = max;
  *row_sum = SumLanes<L>(sum);
}

// ---- weights . v --------------------------------------------------------------------------------

// o[r][16 c ...] = sum over the slots that any row sees, in ascending order, for kColumns columns
// of 16 from `first` on.
template <class L, class Row, int kRows, int kColumns>
void SumBlock(const SegmentMemory& m, const Seen* seen, const float* weights,
              int64_t weights_stride, int first, float* o, int64_t o_stride) {
  using V = typename L::V;
  V sum[kRows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) sum[r][c] = L::Set(0.0f);
  }
  for (int g = 0; g < kGroups; ++g) {
    if (seen[g] == Seen::kNone) continue;
    // Slots beyond those in use may hold anything.
    const int end = (g + 1) * kGroupSlots < m.slots ? (g + 1) * kGroupSlots : m.slots;
    for (int j = g * kGroupSlots; j < end; ++j) {
      const Row row(m, j);
      V v[kColumns];
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) v[c] = row.Load(first + c);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const V w = L::Set(weights[r * weights_stride + j]);
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) sum[r][c] = L::MulAdd(w, v[c], sum[r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) L::Store(o + r * o_stride + (first + c) * kLanes, sum[r][c]);
  }
}

template <class L, class Row, int kRows, int kColumns>
void SumColumns(const SegmentMemory& m, const Seen* seen, const float* weights,
                int64_t weights_stride, int first, float* o, int64_t o_stride) {
  const int columns = (m.head_dim + kLanes - 1) / kLanes;
  for (; first + kColumns <= columns; first += kColumns) {
    SumBlock<L, Row, kRows, kColumns>(m, seen, weights, weights_stride, first, o, o_stride);
  }
  if constexpr (kColumns > 1) {
    if (first < columns) {
      SumColumns<L, Row, kRows, kColumns / 2>(m, seen, weights, weights_stride, first, o, o_stride);
    }
  }
}

template <class L, class Row, int kRows>
void SumRows(const SegmentMemory& m, const Seen* seen, int rows, const float* weights,
             int64_t weights_stride, float* o, int64_t o_stride) {
  int r = 0;
  for (; r + kRows <= rows; r += kRows) {
    SumColumns<L, Row, kRows, ColumnsThatFit<L, kRows>()>(
        m, seen, weights + r * weights_stride, weights_stride, 0, o + r * o_stride, o_stride);
  }
  if constexpr (kRows > 1) {
    if (r < rows) {
      SumRows<L, Row, kRows - 1>(m, seen, rows - r, weights + r * weights_stride, weights_stride,
                                 o + r * o_stride, o_stride);
    }
  }
}

// ---- The kernels --------------------------------------------------------------------------------

template <class L>
constexpr int kBlockRows = L::kAccumulators < kMaxBlockRows ? L::kAccumulators : kMaxBlockRows;

template <class L>
void Dots(const SegmentMemory& m, const Seen* seen, int rows, const float* const* q, float* out,
          int64_t out_stride) {
  WithTile<L>(m.k_format, [&]<class Tile>() {
    for (int g = 0; g < kGroups; ++g) {
      if (seen[g] != Seen::kNone) {
        DotGroup<L, Tile, kBlockRows<L>>(m, g, rows, q, out, out_stride);
      }
    }
  });
}

template <class L>
void AttendSegment(const SegmentArgs& args) {
  const SegmentMemory& m = args.memory;
  Seen seen[kGroups];
  Classify(m, args.rule, args.rows, args.q_positions, seen);
  bool any = false;
  for (int g = 0; g < kGroups; ++g) {
    any |= seen[g] != Seen::kNone;
    if (seen[g] != Seen::kNone || !args.fill || g * kGroupSlots >= m.slots) continue;
    for (int r = 0; r < args.rows; ++r) {
      float* row = args.weights + r * args.weights_stride + g * kGroupSlots;
      for (int j = 0; j < kGroupSlots; j += kLanes) L::Store(row + j, L::Set(0.0f));
    }
  }
  if (!any) {
    for (int r = 0; r < args.rows; ++r) {
      args.m[r] = -kInfinity;
      args.l[r] = 0;
    }
    return;
  }
  Dots<L>(m, seen, args.rows, args.q, args.weights, args.weights_stride);
  for (int r = 0; r < args.rows; ++r) {
    SoftmaxRow<L>(m, args.rule, seen, args.q_positions[r], args.weights + r * args.weights_stride,
                  &args.m[r], &args.l[r]);
  }
  WithRow<L>(m.v_format, [&]<class Row>() {
    SumRows<L, Row, kBlockRows<L>>(m, seen, args.rows, args.weights, args.weights_stride, args.o,
                                   args.o_stride);
  });
}

template <class L>
void AddMass(const MassArgs& args) {
  using V = typename L::V;
  const SegmentMemory& m = args.memory;
  Seen seen[kGroups];
  Classify(m, args.rule, args.rows, args.q_positions, seen);
  Dots<L>(m, seen, args.rows, args.q, args.weights, kSegmentSlots);
  const V zero = L::Set(0.0f);
  for (int g = 0; g < kGroups; ++g) {
    if (seen[g] == Seen::kNone) continue;
    for (int r = 0; r < args.rows; ++r) {
      if (args.factor[r] == 0) continue;
      const int32_t p = args.q_positions[r];
      const int32_t low = LowestSeen(p, args.rule.window);
      const V max = L::Set(args.m[r]);
      const V factor = L::Set(args.factor[r]);
      for (int j = g * kGroupSlots; j < (g + 1) * kGroupSlots; j += kLanes) {
        const V logit = Logit<L>(args.rule, L::Load(args.weights + r * kSegmentSlots + j));
        V x = L::Sub(logit, max);
        if (seen[g] == Seen::kSome) {
          x = Visible<L>(m, j, low, p, x, zero);
          x = Visible<L>(m, j, low, p, Exp<L>(x), zero);
        } else {
          x = Exp<L>(x);
        }
        L::Store(args.mass + j, L::MulAdd(x, factor, L::Load(args.mass + j)));
      }
    }
  }
}

template <class L>
float ExpOne(float x) {
  float lane[kLanes];
  L::Store(lane, Exp<L>(L::Set(x)));
  return lane[0];
}

template <class L>
void Merge(float* m, float* l, float* o, float segment_m, float segment_l, const float* segment_o,
           int head_dim) {
  using V = typename L::V;
  if (segment_m == -kInfinity) return;
  if (*m == -kInfinity) {
    for (int i = 0; i < head_dim; i += kLanes) L::Store(o + i, L::Load(segment_o + i));
    *m = segment_m;
    *l = segment_l;
    return;
  }
  const float largest = segment_m > *m ? segment_m : *m;
  const float before = ExpOne<L>(*m - largest);
  const float segment = ExpOne<L>(segment_m - largest);
  for (int i = 0; i < head_dim; i += kLanes) {
    const V scaled = L::Mul(L::Load(o + i), L::Set(before));
    L::Store(o + i, L::MulAdd(L::Load(segment_o + i), L::Set(segment), scaled));
  }
  *l = *l * before + segment_l * segment;
  *m = largest;
}

template <class L>
void FinishHead(float* out, const float* o, float l, int head_dim) {
  for (int i = 0; i < head_dim; i += kLanes) {
    const int n = head_dim - i < kLanes ? head_dim - i : kLanes;
    L::StoreFirst(out + i, l == 0 ? L::Set(0.0f) : L::Div(L::LoadFirst(o + i, n), L::Set(l)), n);
  }
}

template <class L>
void SumWeights(float* mass, const float* weights, int64_t weights_stride, const float* factor,
                int rows, int n) {
  using V = typename L::V;
  for (int j = 0; j < n; j += kLanes) {
    const int count = n - j < kLanes ? n - j : kLanes;
    V sum = L::Set(0.0f);
    for (int r = 0; r < rows; ++r) {
      // Groups of weights are whole, so the last load may go beyond n.
      sum = L::MulAdd(L::Load(weights + r * weights_stride + j), L::Set(factor[r]), sum);
    }
    L::StoreFirst(mass + j, sum, count);
  }
}

template <class L>
void WidenK(const SegmentMemory& m, float* out) {
  WithTile<L>(m.k_format, [&]<class Tile>() {
    for (int t = 0; t * kLanes < m.slots; ++t) {
      Tile tile;
      tile.Open(m, t);
      for (int begin = 0; begin < m.head_dim;) {
        const int end = begin + tile.Enter(begin, m.head_dim);
        for (int d = begin; d < end; ++d, out += kLanes) L::Store(out, tile.Load(d));
        begin = end;
      }
    }
  });
}

template <class L>
void WidenV(const SegmentMemory& m, float* out) {
  WithRow<L>(m.v_format, [&]<class Row>() {
    for (int j = 0; j < m.slots; ++j) {
      const Row row(m, j);
      for (int i = 0; i * kLanes < m.head_dim; ++i, out += kLanes) L::Store(out, row.Load(i));
    }
  });
}

template <class L>
constexpr AttentionKernels MakeAttentionKernels() {
  return {.attend_segment = AttendSegment<L>,
          .add_mass = AddMass<L>,
          .merge = Merge<L>,
          .finish = FinishHead<L>,
          .exp = ExpOne<L>,
          .sum_weights = SumWeights<L>,
          .widen_k = WidenK<L>,
          .widen_v = WidenV<L>};
}

}  // namespace
}  // namespace keyline
