// What one chunk did to one layer's cache: enough to replay every decision elsewhere, for instance
// in training with a cache policy in place.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/ops/batch.h"
#include "kernels/ops/cache_memory.h"

namespace keyline {

struct SlotMove {
  int32_t head = 0;
  int32_t from = 0;
  int32_t to = 0;
};

struct ChunkPlacement {
  int lane = 0;
  int first_position = 0;
  int tokens = 0;
  // First all moves at once, then the writes: slots[t][g] took token first_position + t of KV
  // head g.
  std::vector<SlotMove> moves;
  std::vector<std::vector<int32_t>> slots;
  // Positions that the cache lost, [kv head], ascending.
  std::vector<std::vector<int32_t>> evicted;
};

// Position in each slot of a lane, -1 = empty: [kv head][slot].
using SlotPositionsOfLane = std::vector<std::vector<int32_t>>;

// The chunks of a batch. Waits for the stream.
std::vector<Chunk> ReadChunks(Stream& s, const Batch& batch);

// Appends what a pass has placed, chunk after chunk. before[i]: the lane of chunk i before the
// pass. Waits for the stream.
void ReadPlacement(Stream& s, const Placement& placement, const Batch& batch,
                   const std::vector<SlotPositionsOfLane>& before, int kv_heads,
                   std::vector<ChunkPlacement>& out);

}  // namespace keyline
