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
};

// Appends what a pass has placed, chunk after chunk. Waits for the stream.
void ReadPlacement(Stream& s, const Placement& placement, const Batch& batch, int kv_heads,
                   std::vector<ChunkPlacement>& out);

}  // namespace keyline
