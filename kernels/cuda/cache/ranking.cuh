// How a lane goes on: what it forgets once it is full, the slots of lowest rank or the oldest round
// a ring, and its progress. Shared by the
// operations that place a pass's tokens (place_slots.cu) and by the decode pass.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/select.cuh"
#include "kernels/ops/batch.h"
#include "kernels/ops/cache_memory.h"

namespace keyline::cuda {

// Slot of the token at `position` for lanes that fill their slots in order and then go round those
// that are not protected.
__device__ inline int32_t RingSlotOf(const LaneRules& rules, int32_t position) {
  if (position < rules.length) return position;
  const int before = rules.protect_begin - rules.sinks;  // slots of the ring before the range
  const int ring = rules.length - rules.sinks - (rules.protect_end - rules.protect_begin);
  const int32_t slot = (position - rules.length) % ring;
  return slot + (slot < before ? rules.sinks : rules.protect_end - before);
}

// The first slot that a full lane evicts for n tokens while it has no scores.
__device__ inline int32_t FirstWithoutScores(const LaneRules& rules, int n) {
  return max(min(rules.keep_initial, rules.length - rules.grace - n), rules.sinks);
}

// The i-th oldest token of the grace ring.
__device__ inline int32_t GraceSlot(const LaneRules& rules, const LaneProgress& progress, int i) {
  return rules.length - rules.grace + (progress.ring_next + i) % rules.grace;
}

// The chunk has been processed. Called by one thread.
__device__ inline void AdvanceLane(const SlotTable& table, const Chunk& chunk,
                                   const LaneRules& rules) {
  LaneProgress progress = table.progress[chunk.lane];
  progress.tokens = chunk.first_position + chunk.tokens;
  if (chunk.chunk_position == 0) progress.first_chunk = chunk.chunk_tokens;
  if (chunk.takes_mass && rules.wants_mass) progress.scored = 1;
  // A chunk larger than the ring replaces all of it, oldest first, and so ends where it began.
  if (rules.grace > 0 && chunk.first_position >= rules.length && chunk.tokens <= rules.grace) {
    progress.ring_next = (progress.ring_next + chunk.tokens) % rules.grace;
  }
  table.progress[chunk.lane] = progress;
}

// Lowest and highest score and error of slots that may be ranked; NaN is neither.
struct Extremes {
  float low_score;
  float high_score;
  float low_error;
  float high_error;

  __device__ static Extremes None() { return {INFINITY, -INFINITY, INFINITY, -INFINITY}; }

  __device__ void Add(const Extremes& e) {
    low_score = e.low_score < low_score ? e.low_score : low_score;
    high_score = e.high_score > high_score ? e.high_score : high_score;
    low_error = e.low_error < low_error ? e.low_error : low_error;
    high_error = e.high_error > high_error ? e.high_error : high_error;
  }
};

__device__ inline float MinMaxed(float x, float low, float high) {
  return high > low ? __fdiv_rn(__fsub_rn(x, low), __fsub_rn(high, low)) : 0;
}

// What the ranking of one head of one chunk's lane reads.
struct Ranking {
  const float* scores;  // of the head, [slots]
  const int32_t* slot_pos;
  const float* errors;  // null: ranked by score alone
  bool normalize;
  int32_t tokens;         // processed before the chunk
  int32_t last_of_first;  // last position of the first chunk
  Extremes extremes;      // of all heads, where errors are ranked

  // By age if the lane asks for it. score: scores[slot].
  __device__ float Score(int64_t slot, float score) const {
    if (!normalize) return score;
    return __fdiv_rn(score, static_cast<float>(tokens - max(slot_pos[slot], last_of_first)));
  }

  __device__ uint64_t Key(int64_t slot) const { return Key(slot, scores[slot]); }
  __device__ uint64_t Key(int64_t slot, float score_of_slot) const {
    float rank = Score(slot, score_of_slot);
    if (errors != nullptr) {
      constexpr float kWeight = 0.5f;  // how scores weigh against errors
      const float score = MinMaxed(rank, extremes.low_score, extremes.high_score);
      const float error = MinMaxed(errors[slot], extremes.low_error, extremes.high_error);
      rank = __fadd_rn(__fadd_rn(__fmul_rn(kWeight, score), __fmul_rn((kWeight - 1) / 2, error)),
                       1 - kWeight);
    }
    return static_cast<uint64_t>(Orderable(rank)) << 32 | static_cast<uint64_t>(slot);
  }

  __device__ Extremes At(int64_t slot) const {
    const float score = Score(slot, scores[slot]);
    return {score, score, errors[slot], errors[slot]};
  }
};

// The ranking of one head of a chunk's lane, by score alone or with errors.
__device__ inline Ranking RankingOf(const SlotTable& table, const Chunk& chunk, int head,
                                    bool with_errors) {
  const size_t row = (size_t(chunk.lane) * table.kv_heads + head) * table.slots;
  return {table.scores + row,
          table.slot_pos + row,
          with_errors ? table.errors + row : nullptr,
          table.rules[chunk.lane].normalize != 0,
          chunk.first_position,
          table.progress[chunk.lane].first_chunk - 1,
          Extremes::None()};
}

// The lowest key of slots [begin, end), in every thread. All threads of the block call it.
__device__ inline uint64_t LowestKey(const Ranking& ranking, int begin, int end) {
  constexpr int kLoads = 16;  // of a thread, under way together
  uint64_t lowest = kNoKey;
  for (int first = begin + threadIdx.x; first < end; first += kLoads * blockDim.x) {
    float scores[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int slot = first + i * blockDim.x;
      scores[i] = slot < end ? ranking.scores[slot] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int slot = first + i * blockDim.x;
      if (slot < end) lowest = Minimum()(lowest, ranking.Key(slot, scores[i]));
    }
  }
  return ReduceBlock(lowest, Minimum(), kNoKey);
}

}  // namespace keyline::cuda
