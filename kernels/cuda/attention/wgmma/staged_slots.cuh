// Slots that are copied before the kernels of this folder read them, for chunks of many rows: those
// of quantised caches as numbers of the products' type, and those of lanes that evict by score in
// an order of their own, earlier tokens as they lie and then the chunk's by position. To a softmax
// any order is good; in this one every row sees all of nearly every tile, or nothing of it,
// wherever the policy has put the tokens. A copy costs a pass over K and V; the products with a
// chunk's rows read them many times.
#pragma once

#include <climits>

#include "kernels/cuda/attention/attention_kernels.cuh"
#include "kernels/cuda/attention/kv_values.cuh"
#include "kernels/cuda/device_check.cuh"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda::wgmma {

constexpr int kStagedRows = 512;  // query rows of a chunk from which on copies pay

// The copies of a pair of chunk and KV head, number `index` of those that there is room for.
struct StagedPair {
  std::byte* k;  // [slots, head_dim]
  std::byte* v;
  int32_t* slots;      // [slots]: which slot's it is
  int32_t* positions;  // [slots]

  __device__ StagedPair(const AttentionArguments& a, int index) {
    const size_t row = a.kv.head_dim * sizeof(uint16_t);
    k = a.staged + index * StagedPairBytes(a.kv.slots, a.kv.head_dim);
    v = k + a.kv.slots * row;
    slots = reinterpret_cast<int32_t*>(v + a.kv.slots * row);
    positions = slots + a.kv.slots;
  }
  __device__ static KvHead Head(std::byte* rows, int head_dim) {
    return {rows, nullptr, head_dim * sizeof(uint16_t), 0};
  }
};

// A task, and where its slots are read. What follows is by their numbers in that order.
struct StagedTask : AttentionTask {
  int index;  // of the chunk
  KvHead k, v;
  bool quantized_k, quantized_v;
  bool staged;
  bool sorted;           // earlier tokens first, then the chunk's own by position
  const int32_t* order;  // the slot of each number; null: the number
};

// Of a launch for pairs from `first_pair` on: that of this block's second index.
__device__ inline StagedTask StagedTaskOf(const AttentionArguments& a, int first_pair) {
  const int pair = first_pair + static_cast<int>(blockIdx.y);
  StagedTask t = {TaskOf(a, pair / a.kv.kv_heads, pair % a.kv.kv_heads)};
  t.index = pair / a.kv.kv_heads;
  t.k = HeadOf(a.kv.k, a.kv.k_format, a.kv, t.chunk.lane, t.kv_head);
  t.v = HeadOf(a.kv.v, a.kv.v_format, a.kv, t.chunk.lane, t.kv_head);
  t.quantized_k = IsQuantized(a.kv.k_format);
  t.quantized_v = IsQuantized(a.kv.v_format);
  // A ring's slots are in order but for where it begins; scores scatter a chunk among what they
  // keep.
  const bool scattered = !t.in_order && a.rules[t.chunk.lane].wants_mass != 0;
  t.staged = a.staged != nullptr && t.chunk.tokens * a.group >= kStagedRows &&
             (scattered || t.quantized_k || t.quantized_v);
  t.sorted = t.in_order || t.staged;
  t.order = nullptr;
  return t;
}

// The same for those who come after OrderSlots and CopySlots.
__device__ inline StagedTask ReadTaskOf(const AttentionArguments& a, int first_pair) {
  StagedTask t = StagedTaskOf(a, first_pair);
  if (!t.staged) return t;
  const StagedPair copies(a, blockIdx.y);
  t.k = StagedPair::Head(copies.k, a.kv.head_dim);
  t.v = StagedPair::Head(copies.v, a.kv.head_dim);
  t.quantized_k = t.quantized_v = false;
  if (!t.in_order) {
    t.order = copies.slots;
    t.slot_pos = copies.positions;
  }
  return t;
}

constexpr int kOrderThreads = 1024;
constexpr int kOrderLoads = 16;  // of a thread, under way together

// Grid: (1, pairs). The slots of a chunk's own tokens are all in use, and different.
__global__ void __launch_bounds__(kOrderThreads) OrderSlots(AttentionArguments a, int first_pair) {
  __shared__ int of_warp[kOrderThreads / kWarp];
  const StagedTask t = StagedTaskOf(a, first_pair);
  if (!t.staged || t.in_order) return;
  const StagedPair copies(a, blockIdx.y);
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int earlier = t.used - t.chunk.tokens;  // slots
  int done = 0;                                 // of them
  for (int first = 0; first < t.used; first += kOrderThreads * kOrderLoads) {
    const auto slot_of = [&](int load) {
      return first + (warp * kOrderLoads + load) * kWarp + lane;
    };
    int position[kOrderLoads];
#pragma unroll
    for (int i = 0; i < kOrderLoads; ++i) {
      position[i] = slot_of(i) < t.used ? t.slot_pos[slot_of(i)] : INT_MAX;
    }
    // The warp's slots of earlier tokens in a load, a bit each.
    const auto earlier_in = [&](int load) {
      return __ballot_sync(kAllLanes, position[load] < t.chunk.first_position);
    };
    int mine = 0;  // this warp's
#pragma unroll
    for (int i = 0; i < kOrderLoads; ++i) mine += __popc(earlier_in(i));
    if (lane == 0) of_warp[warp] = mine;
    __syncthreads();
    const int others = of_warp[lane];
    int begin = done + ReduceWarp(lane < warp ? others : 0, Plus());
    done += ReduceWarp(others, Plus());
    __syncthreads();  // all have read what the next round overwrites
#pragma unroll
    for (int i = 0; i < kOrderLoads; ++i) {
      const unsigned all = earlier_in(i);
      int at = begin + __popc(all & ((1u << lane) - 1));
      begin += __popc(all);
      if (slot_of(i) >= t.used) continue;
      if ((all >> lane & 1) == 0) {
        const int own = position[i] - t.chunk.first_position;
        DeviceCheck(own < t.chunk.tokens);
        at = earlier + own;
      }
      copies.slots[at] = slot_of(i);
      copies.positions[at] = position[i];
    }
  }
  DeviceCheck(done == earlier);
}

constexpr int kCopyThreads = 128;
constexpr int kCopySlots = 32;  // of a block

// Grid: (shares of the slots, pairs).
template <class T, int kDim>
__global__ void __launch_bounds__(kCopyThreads) CopySlots(AttentionArguments a, int first_pair) {
  constexpr int kPacks = kDim / Pack<T>::kSize;
  const int first = static_cast<int>(blockIdx.x) * kCopySlots;
  const StagedTask t = StagedTaskOf(a, first_pair);
  if (!t.staged || first >= t.used) return;
  const StagedPair copies(a, blockIdx.y);
  const int count = min(kCopySlots, t.used - first);
  const auto copy = [&](std::byte* to, const KvHead& from, KvFormat format) {
#pragma unroll 4
    for (int i = threadIdx.x; i < count * kPacks; i += kCopyThreads) {
      const int number = first + i / kPacks;
      const int slot = t.in_order ? number : copies.slots[number];
      const int d = i % kPacks * Pack<T>::kSize;
      auto* const place = reinterpret_cast<Pack<T>*>(to) + number * size_t{kPacks} + i % kPacks;
      if (IsQuantized(format)) {
        *place = StoredPack::Load<kDim>(from, format, slot, d).template Values<T>();
      } else {
        *place = *reinterpret_cast<const Pack<T>*>(from.row(slot) + d * sizeof(T));
      }
    }
  };
  copy(copies.k, t.k, a.kv.k_format);
  copy(copies.v, t.v, a.kv.v_format);
}

}  // namespace keyline::cuda::wgmma
