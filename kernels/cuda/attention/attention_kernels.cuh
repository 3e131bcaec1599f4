// The ways of attention. Private to this folder; attention.cu chooses.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/cache/decode_policies.h"
#include "kernels/device/device.h"
#include "kernels/ops/batch.h"
#include "kernels/ops/cache_memory.h"

namespace keyline::cuda {

// What all kernels of one call read. Pointers are device memory.
struct AttentionArguments {
  void* out;  // [tokens, heads * head_dim]
  int64_t out_stride;
  const void* qkv;  // queries in front; they have been turned, but for a whole DecodePass
  int64_t qkv_stride;
  DType dtype;      // of out and qkv
  bool wants_mass;  // mass is taken, or its logits and sums for whoever makes scores of them
  float* mass;      // [chunks, kv_heads, slots]; null: not written
  float* lse;       // scratch [tokens, heads]: log-sum-exp of each row; null without mass
  float* parts;     // scratch of decode: decode/parts.cuh
  float* weights;   // scratch of decode with mass: decode/parts.cuh
  bool discards;    // whoever has read those two discards them
  // Scratch of wgmma/staged_slots.cuh, null: nothing is copied; and the pairs of chunk and KV head
  // that are attended at a time, for which it has room.
  std::byte* staged;
  int staged_pairs;
  const Chunk* chunk;
  KvMemory kv;
  const LaneRules* rules;
  const int32_t* slot_pos;
  const float* value_norms;  // read by decode with mass where not null
  int heads;
  int group;        // query heads of a KV head
  int splits_log2;  // how decode splits slots: Splits
  float scale;
  float softcap;
  int window;
};

// One chunk and KV head.
struct AttentionTask {
  Chunk chunk;
  int kv_head;
  int used;   // slots of the lane in use
  bool mass;  // is taken
  // The sequence has not evicted yet: slot == position.
  bool in_order;
  const int32_t* slot_pos;
};

__device__ inline AttentionTask TaskOf(const AttentionArguments& a, int chunk, int kv_head) {
  AttentionTask t;
  t.chunk = a.chunk[chunk];
  t.kv_head = kv_head;
  const LaneRules& rules = a.rules[t.chunk.lane];
  const int tokens = t.chunk.first_position + t.chunk.tokens;
  t.in_order = tokens <= rules.length;
  t.used = t.in_order ? tokens : rules.length;
  t.mass = a.wants_mass && t.chunk.takes_mass != 0 && rules.wants_mass != 0;
  t.slot_pos = a.slot_pos + (size_t(t.chunk.lane) * a.kv.kv_heads + kv_head) * a.kv.slots;
  return t;
}

// A query at p sees positions in (LowestSeen(p), p]. Empty slots are -1 and never seen.
__device__ inline int LowestSeen(const AttentionArguments& a, int p) {
  return a.window > 0 && p >= a.window ? p - a.window : -1;
}

// attention_simt.cu: any head size up to 256, any format, exact in float32.
constexpr int kMostHeadDim = 256;
template <class T>
void AttendSimt(Stream& s, const AttentionArguments& a, const Batch& batch);

// attention_mma_{bf16,f16}.cu: on tensor cores, for the head sizes of HasMma. T: __half or
// __nv_bfloat16, the type of activations and of a plain cache.
bool HasMma(int head_dim);
template <class T>
void AttendMma(Stream& s, const AttentionArguments& a, const Batch& batch);
// wgmma/: chunks of several tokens of AttendMma on Hopper's own instructions. False where this
// device, build, format or head size has none; then nothing was enqueued.
template <class T>
bool AttendWgmma(Stream& s, const AttentionArguments& a, const Batch& batch);

// Attention of a batch's chunks of one token, or the whole pass (decode_pass.cuh) of a batch that
// has no others.
struct DecodePass {
  AttentionArguments attention;
  Batch batch;
  // The tokens have their slots (PlaceDecode), but q has not been turned, nor k and v written: that
  // comes with the attention. What follows is of such a pass alone.
  bool whole = false;
  // One of the waves of chunks that a pass is attended in (decode_pass.cuh): another comes before,
  // behind it.
  bool after_wave = false;
  bool before_wave = false;
  SlotTable table = {};
  Placement placement = {};
  AttentionSpec spec = {};
  PolicyRule policies[kMostPolicies] = {};
};
template <class T>
void RunDecodePass(Stream& s, const DecodePass& p);

// decode/take_mass.cu: adds the mass of a whole pass, of which LaunchDecode has left the weights,
// to the scores.
void TakeMass(cudaStream_t stream, const DecodePass& p);

// decode/: chunks of one token, up to what it leaves to whoever merges it (decode/parts.cuh). One
// for each pair of formats that a storage has.
template <KvFormat kK, KvFormat kV>
void LaunchDecodeOf(Stream& s, const DecodePass& p);
constexpr bool HasDecode(KvFormat k, KvFormat v) {
  return IsQuantized(k) ? v == KvFormat::kInt4 || v == k : v == k && k != KvFormat::kF32;
}
void LaunchDecode(Stream& s, const DecodePass& p);

// Scratch of chunks of several tokens (wgmma/staged_slots.cuh), of a pair of chunk and KV head: K,
// V and two numbers of each slot. As many at a time as kStagedBytes have room for; two at least, as
// one alone leaves much of a GPU idle.
constexpr size_t kStagedBytes = size_t{128} << 20;
__host__ __device__ inline size_t StagedPairBytes(int slots, int head_dim) {
  return size_t(slots) * (2 * head_dim * sizeof(uint16_t) + 2 * sizeof(int32_t));
}
inline int64_t MostStagedPairs(int slots, int head_dim) {
  const auto room = static_cast<int64_t>(kStagedBytes / StagedPairBytes(slots, head_dim));
  return room > 2 ? room : 2;
}
// Of `pairs`, in shares that are all alike.
inline int StagedPairs(int64_t pairs, int slots, int head_dim) {
  const int64_t most = MostStagedPairs(slots, head_dim);
  const int64_t shares = (pairs + most - 1) / most;
  return static_cast<int>((pairs + shares - 1) / shares);
}

constexpr int kDecodeHeads = 8;  // query heads of a KV head that decode attends at a time
__host__ __device__ constexpr int RowTilesOf(int group) {
  return (group + kDecodeHeads - 1) / kDecodeHeads;
}

// How decode splits the slots of a lane: 256 to a part, or more where that leaves two parts of a
// sequence for each multiprocessor of a large GPU. More parts cost bytes, fewer leave blocks idle.
// It depends on the lane and the model alone, so that no sequence's numbers depend on others.
class Splits {
 public:
  static constexpr int kUnit = 128;  // a multiple of what a block takes at a time, of any format
  static constexpr int kLeastSlots = 256;

  __host__ __device__ Splits(const AttentionArguments& a, int used) {
    const int even = ((used >> a.splits_log2) + kUnit - 1) / kUnit * kUnit;
    slots_ = kLeastSlots > even ? kLeastSlots : even;
    count_ = static_cast<int>(static_cast<unsigned>(used + slots_ - 1) / slots_);
  }

  __host__ __device__ int slots() const { return slots_; }  // of each, but for the last
  __host__ __device__ int count() const { return count_; }

  // No lane of at most `slots` slots has more.
  __host__ __device__ static int Most(int slots) { return (slots + kLeastSlots - 1) / kLeastSlots; }

  // AttentionArguments::splits_log2: the logarithm of how many of one unit (decode/work.cuh) do.
  static int Log2(int kv_heads, int group) {
    constexpr int kPartsOfLane = 256;
    int log2 = 3;  // warps that merge have something to do
    while (kv_heads * RowTilesOf(group) << (log2 + 1) <= kPartsOfLane) ++log2;
    return log2;
  }

 private:
  int slots_;
  int count_;
};

// Of the parts of a chunk and KV head: o [splits, group, head_dim]; m, l and v [group, splits]. A
// multiple of 4, as whoever reads o wants it.
__host__ __device__ inline size_t PartFloats(const KvMemory& kv, int group) {
  const size_t sums = size_t(group) * Splits::Most(kv.slots);
  return sums * kv.head_dim + (3 * sums + 3) / 4 * 4;
}

// Of the weights of a chunk and KV head, which are half as long: decode/parts.cuh. Slots come in
// whole tiles.
constexpr int kWeightTile = 16;
__host__ __device__ inline size_t WeightFloats(int slots, int group) {
  return size_t(group) * (slots / 2 + slots / kWeightTile);
}

}  // namespace keyline::cuda
