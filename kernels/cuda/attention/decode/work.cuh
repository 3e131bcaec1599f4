// How the work of a decode pass is dealt to blocks. An item is kSplitSlots slots of a lane for up
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

  DecodeUnits(const AttentionArguments& a, const Batch& batch)
      : chunks(batch.chunks), row_tiles((a.group + kDecodeHeads - 1) / kDecodeHeads) {}
};

// One item after the other. The same in all threads of a warp.
class DecodeWalk {
 public:
  // Begins at this block's first item; `items` is how many it has.
  __device__ DecodeWalk(const AttentionArguments& a, const DecodeUnits& units, int& items)
      : a_(a), units_(units) {
    const int lane = threadIdx.x % kWarp;
    int all = 0;
    for (int c = 0; c < units_.chunks; c += kWarp) all += ItemsOf(c + lane);
    all = ReduceWarp(all, Plus{});
    const int begin = BeginOf(all, blockIdx.x);
    items = BeginOf(all, blockIdx.x + 1) - begin;
    if (items == 0) return;
    // The chunk that it lies in.
    int before = 0;
    for (int c = 0;; c += kWarp) {
      const int mine = ItemsOf(c + lane);
      int up_to = mine;  // with those of the lanes before
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int other = __shfl_up_sync(kAllLanes, up_to, offset);
        if (lane >= offset) up_to += other;
      }
      const unsigned behind = __ballot_sync(kAllLanes, before + up_to > begin);
      if (behind != 0) {
        const int at = __ffs(behind) - 1;
        before += __shfl_sync(kAllLanes, up_to - mine, at);
        chunk_ = c + at;
        break;
      }
      before += __shfl_sync(kAllLanes, up_to, kWarp - 1);
    }
    Enter();
    unit_ = (begin - before) / splits_;
    split_ = (begin - before) % splits_;
    TurnToHead();
  }

  // REQUIRES: there is a next item.
  __device__ void Next() {
    if (++split_ < splits_) return;
    split_ = 0;
    if (++unit_ == a_.kv.kv_heads * units_.row_tiles) {
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
  __device__ int splits_left() const { return splits_ - split_; }
  __device__ int first_slot() const { return split_ * kSplitSlots; }
  // Of the group.
  __device__ int first_row() const { return unit_ % units_.row_tiles * kDecodeHeads; }

 private:
  __device__ int ItemsOf(int chunk) const {
    if (chunk >= units_.chunks || a_.chunk[chunk].tokens != 1) return 0;
    const int used = TaskOf(a_, chunk, 0).used;
    return a_.kv.kv_heads * units_.row_tiles * SplitsOfSlots(used);
  }
  __device__ static int BeginOf(int all, unsigned block) {
    return static_cast<int>(int64_t{all} * block / gridDim.x);
  }
  __device__ void Enter() {
    task_ = TaskOf(a_, chunk_, 0);
    splits_ = SplitsOfSlots(task_.used);
  }
  __device__ void TurnToHead() {
    const int head = unit_ / units_.row_tiles;
    task_.slot_pos += int64_t{head - task_.kv_head} * a_.kv.slots;
    task_.kv_head = head;
  }

  const AttentionArguments& a_;
  const DecodeUnits& units_;
  AttentionTask task_;
  int chunk_ = 0;
  int splits_ = 0;
  int unit_ = 0;  // row tile of a KV head
  int split_ = 0;
};

}  // namespace keyline::cuda
