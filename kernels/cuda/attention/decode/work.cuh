// How the work of a decode pass is dealt to blocks. An item is one of the Splits of a lane for up
// to kDecodeHeads query heads of one KV head; every block takes a range of as many items as any
// other, give or take one, and goes through it without a pause. Items are counted on the device,
// because how many slots are in use changes from step to step; what is in an item depends on its
// lane alone.
#pragma once

#include "kernels/cuda/attention/attention_kernels.cuh"
#include "kernels/cuda/attention/decode/keys.cuh"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {

// Groups of query heads of a pass.
struct DecodeUnits {
  int chunks;
  int row_tiles;  // of kDecodeHeads query heads, of a KV head
  int of_chunk;

  DecodeUnits(const AttentionArguments& a, const Batch& batch)
      : chunks(batch.chunks), row_tiles(RowTilesOf(a.group)), of_chunk(a.kv.kv_heads * row_tiles) {}
};

// One item after the other. The same in all threads of a warp. What a block does before its first
// copies is on the way of every kernel: few instructions count here, most of all for one chunk.
class DecodeWalk {
 public:
  // Begins at this block's first item; `items` is how many it has.
  __device__ DecodeWalk(const AttentionArguments& a, const DecodeUnits& units, int& items)
      : a_(a), units_(units), splits_(a, 0) {
    unsigned all;
    if (units_.chunks == 1) {
      Enter();
      all = task_.chunk.tokens == 1 ? units_.of_chunk * splits_.count() : 0;
    } else {
      all = CountItems();
    }
    // So many for each block, and one more for the first blocks.
    const unsigned each = all < gridDim.x ? 0 : all / gridDim.x;
    const unsigned more = all - each * gridDim.x;
    const int begin = static_cast<int>(blockIdx.x * each + min(blockIdx.x, more));
    items = static_cast<int>(each + (blockIdx.x < more ? 1 : 0));
    if (items == 0) return;
    int before = 0;  // items of chunks before this one
    if (units_.chunks > 1) {
      before = FindChunk(begin);
      Enter();
    }
    const auto count = static_cast<unsigned>(splits_.count());
    unit_ = static_cast<int>(static_cast<unsigned>(begin - before) / count);
    split_ = begin - before - unit_ * splits_.count();
    TurnToHead();
  }

  // REQUIRES: there is a next item.
  __device__ void Next() {
    if (++split_ < splits_.count()) return;
    split_ = 0;
    if (++unit_ == units_.of_chunk) {
      unit_ = 0;
      do ++chunk_;
      while (a_.chunk[chunk_].tokens != 1);
      Enter();
    }
    TurnToHead();
  }

  __device__ const AttentionTask& task() const { return task_; }
  __device__ int chunk() const { return chunk_; }
  __device__ int split() const { return split_; }
  // That this one and those behind it of the unit are.
  __device__ int splits_left() const { return splits_.count() - split_; }
  __device__ int split_slots() const { return splits_.slots(); }
  __device__ int first_slot() const { return split_ * splits_.slots(); }
  // Of the group.
  __device__ int first_row() const {
    return (unit_ - task_.kv_head * units_.row_tiles) * kDecodeHeads;
  }

 private:
  __device__ unsigned CountItems() const {
    unsigned all = 0;
#pragma unroll 1
    for (int c = 0; c < units_.chunks; c += kWarp) {
      all += __reduce_add_sync(kAllLanes, ItemsOf(c + threadIdx.x % kWarp));
    }
    return all;
  }
  // Sets the chunk that item `item` of all lies in; returns how many lie in chunks before it.
  __device__ int FindChunk(int item) {
    const int lane = threadIdx.x % kWarp;
    int before = 0;
#pragma unroll 1
    for (int c = 0;; c += kWarp) {
      const int mine = ItemsOf(c + lane);
      int up_to = mine;  // with those of the lanes before
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int other = __shfl_up_sync(kAllLanes, up_to, offset);
        if (lane >= offset) up_to += other;
      }
      const unsigned behind = __ballot_sync(kAllLanes, before + up_to > item);
      if (behind != 0) {
        const int at = __ffs(behind) - 1;
        chunk_ = c + at;
        return before + __shfl_sync(kAllLanes, up_to - mine, at);
      }
      before += __shfl_sync(kAllLanes, up_to, kWarp - 1);
    }
  }
  __device__ int ItemsOf(int chunk) const {
    if (chunk >= units_.chunks) return 0;
    const Chunk& c = a_.chunk[chunk];
    const int used = min(c.first_position + 1, a_.rules[c.lane].length);  // as TaskOf says
    return c.tokens == 1 ? units_.of_chunk * Splits(a_, used).count() : 0;
  }
  __device__ void Enter() {
    task_ = TaskOf(a_, chunk_, 0);
    splits_ = Splits(a_, task_.used);
  }
  __device__ void TurnToHead() {
    const int head = units_.row_tiles == 1 ? unit_ : unit_ / units_.row_tiles;
    task_.slot_pos += int64_t{head - task_.kv_head} * a_.kv.slots;
    task_.kv_head = head;
  }

  const AttentionArguments& a_;
  const DecodeUnits& units_;
  AttentionTask task_;
  Splits splits_;  // of the task's lane
  int chunk_ = 0;
  int unit_ = 0;  // row tile of a KV head
  int split_ = 0;
};

}  // namespace keyline::cuda
