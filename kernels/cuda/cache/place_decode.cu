// Slots for chunks of one token, and the moves that make room, of many layers at once: the same
// choices as place_slots.cu makes and the same moves as kv_write.cu.
#include <algorithm>

#include "kernels/cuda/cache/decode_policies.h"
#include "kernels/cuda/cache/ranking.cuh"
#include "kernels/cuda/cache/write_head.cuh"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device_check.cuh"
#include "kernels/cuda/launch.cuh"

namespace keyline::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kMostLayers = 128;  // of a launch, whose parameters may have 32764 bytes

struct DecodePlaces {
  Batch batch;
  PolicyRule policies[kMostPolicies];
  PlacedCache layers[kMostLayers];
};
static_assert(sizeof(DecodePlaces) <= 32764);

// Where the token goes, and the move that goes before, from < 0: none.
struct DecodePlace {
  int slot;
  int from = -1;
  int to = -1;
};

// By all threads of the block.
__device__ DecodePlace PlaceToken(const SlotTable& table, const PolicyRule* policies,
                                  const Chunk& chunk, int head) {
  const LaneRules& rules = table.rules[chunk.lane];
  DecodePlace out;
  if (!policies[rules.policy].by_score) {
    out.slot = RingSlotOf(rules, chunk.first_position);
    return out;
  }
  out.slot = chunk.first_position;
  if (chunk.first_position < rules.length) return out;
  const LaneProgress progress = table.progress[chunk.lane];
  const int candidates = rules.length - rules.grace;
  out.slot = progress.scored != 0
                 ? static_cast<int>(static_cast<uint32_t>(
                       LowestKey(RankingOf(table, chunk, head, false), rules.sinks, candidates)))
                 : FirstWithoutScores(rules, 1);
  if (rules.grace > 0) {
    out.to = out.slot;
    out.from = out.slot = GraceSlot(rules, progress, 0);
  }
  return out;
}

// Grid: (kv_heads, chunks, layers).
__global__ void __launch_bounds__(kThreads)
    PlaceDecodeKernel(const __grid_constant__ DecodePlaces p) {
  const PlacedCache& layer = p.layers[blockIdx.z];
  const KvMemory& kv = layer.kv;
  const int head = blockIdx.x;
  const Chunk chunk = p.batch.chunk[blockIdx.y];
  DeviceCheck(chunk.tokens == 1);
  const DecodePlace placed = PlaceToken(layer.table, p.policies, chunk, head);
  const int warp = threadIdx.x / kWarp;
  if (placed.from >= 0) {
    // Others have read what is to be overwritten: PlaceToken ends with a barrier behind that.
    if (warp == 0) CopyRow(HeadOf(kv.k, kv.k_format, kv, chunk.lane, head), placed.from, placed.to);
    if (warp == 1) CopyRow(HeadOf(kv.v, kv.v_format, kv, chunk.lane, head), placed.from, placed.to);
    if (threadIdx.x == 2 * kWarp) {
      MoveEntry(layer.table, chunk.lane, head, placed.from, placed.to);
    }
  }
  if (threadIdx.x > 0) return;
  const Placement& out = layer.placement;
  const int64_t at = int64_t{chunk.first_token} * kv.kv_heads + head;
  out.slots[at] = placed.slot;
  if (out.moved_from != nullptr) {
    out.moved_from[at] = placed.from;
    out.moved_to[at] = placed.to;
  }
}

}  // namespace

bool PlaceDecode(Stream& s, std::span<const PlacedCache> layers, const Batch& batch,
                 std::span<const PolicyRule> policies) {
  if (!PlacesAlone(policies)) return false;
  DecodePlaces p = {.batch = batch, .policies = {}, .layers = {}};
  std::copy(policies.begin(), policies.end(), p.policies);
  for (size_t first = 0; first < layers.size(); first += kMostLayers) {
    const size_t count = std::min<size_t>(layers.size() - first, kMostLayers);
    std::copy_n(layers.begin() + first, count, p.layers);
    const dim3 grid(layers[first].kv.kv_heads, batch.chunks, static_cast<unsigned>(count));
    LaunchApart(s, PlaceDecodeKernel, grid, kThreads, 0, p);
  }
  return true;
}

}  // namespace keyline::cuda
