// Where the tokens of a pass go: round a ring, or into the slots of lowest rank. The same choices
// as kernels/cpu/cache/place_slots.cc makes, to the slot.
#include <algorithm>

#include "kernels/cuda/cache/ranking.cuh"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device_check.cuh"
#include "kernels/cuda/select.cuh"

namespace keyline::cuda {
namespace {

constexpr int kRingThreads = 256;

// Blocks: ranges of (token, head) pairs of a chunk x chunks.
__global__ void PlaceInRingKernel(Placement out, Batch batch, SlotTable table, int policy) {
  const Chunk chunk = batch.chunk[blockIdx.y];
  const LaneRules rules = table.rules[chunk.lane];
  if (rules.policy != policy) return;
  const int ring = rules.length - rules.sinks - (rules.protect_end - rules.protect_begin);
  DeviceCheck(chunk.tokens <= ring || chunk.first_position == 0 ||
              chunk.first_position + chunk.tokens <= rules.length);
  const int64_t pair = int64_t{blockIdx.x} * kRingThreads + threadIdx.x;
  if (pair >= int64_t{chunk.tokens} * table.kv_heads) return;
  const int32_t slot =
      RingSlotOf(rules, chunk.first_position + static_cast<int32_t>(pair / table.kv_heads));
  const int64_t at = int64_t{chunk.first_token} * table.kv_heads + pair;
  out.slots[at] = slot;
  if (out.moved_from != nullptr) out.moved_from[at] = -1;
}

// The choice for one chunk whose lane follows the rules of PlaceByScore; a block works on one head
// at a time.
class ScoredPlacement {
 public:
  // keys: memory for the keys of the chunk's slots, PowerOfTwoFrom(chunk.tokens).
  __device__ ScoredPlacement(const Placement& out, const SlotTable& table, const Chunk& chunk,
                             SelectMemory& memory, uint64_t* keys)
      : out_(out),
        table_(table),
        chunk_(chunk),
        rules_(table.rules[chunk.lane]),
        progress_(table.progress[chunk.lane]),
        memory_(memory),
        keys_(keys),
        in_ring_(min(chunk.tokens, rules_.grace)),
        candidates_(rules_.length - rules_.grace) {
    if (full()) {
      DeviceCheck(chunk.first_position >= rules_.length &&
                  chunk.tokens <= candidates_ - rules_.sinks);
    }
  }

  __device__ bool full() const { return chunk_.first_position + chunk_.tokens > rules_.length; }
  __device__ bool scored() const { return progress_.scored != 0; }

  __device__ void PlaceInOrder(int head) const {
    for (int i = threadIdx.x; i < chunk_.tokens; i += kSelectThreads) {
      out_.slots[At(i, head)] = chunk_.first_position + i;
      out_.moved_from[At(i, head)] = -1;
    }
  }

  __device__ void EvictWithoutScores(int head) const {
    const int kept = FirstWithoutScores(rules_, chunk_.tokens);
    Fill(head, [kept](int i) { return kept + i; });
  }

  __device__ Ranking RankingOf(int head, bool with_errors) const {
    return cuda::RankingOf(table_, chunk_, head, with_errors);
  }

  // Evicts the slots of lowest rank; their keys are in `keys` afterwards, ascending.
  __device__ void EvictLowest(int head, const Ranking& ranking) {
    if (chunk_.tokens == 1) {
      const uint64_t lowest = LowestKey(ranking, rules_.sinks, candidates_);
      __syncthreads();  // all have read the keys of the head before
      if (threadIdx.x == 0) keys_[0] = lowest;
      __syncthreads();
    } else {
      const auto key_of = [&ranking](int64_t slot) { return ranking.Key(slot); };
      SelectLowest(memory_, rules_.sinks, candidates_, chunk_.tokens, 32 - __clz(candidates_),
                   key_of, keys_);
    }
    FillFromKeys(head);
  }

  // The same by the kBlocks of a row together, whose first one's memory has the keys.
  // REQUIRES: `keys` is memory.warp, and has room.
  template <int kBlocks>
  __device__ void EvictLowestTogether(int head, const Ranking& ranking) {
    const auto blocks = BlocksOfRow<kBlocks>();
    const unsigned rank = blocks.block_rank();
    const int part = (candidates_ - rules_.sinks + kBlocks - 1) / kBlocks;
    const int begin = min(rules_.sinks + static_cast<int>(rank) * part, candidates_);
    const int end = min(begin + part, candidates_);
    if (threadIdx.x == 0) memory_.taken = 0;
    const uint64_t limit = LimitKey(
        memory_, begin, end, chunk_.tokens, 32 - __clz(candidates_),
        [&ranking](int64_t slot) { return ranking.Key(slot); }, CountKeys(), RowSum<kBlocks>());
    // All blocks have left their histograms, in whose place the keys come.
    int* const taken = blocks.map_shared_rank(&memory_.taken, 0);
    uint64_t* const keys = blocks.map_shared_rank(keys_, 0);
    const int lane = threadIdx.x % kWarp;
#pragma unroll kSelectAhead
    for (int first = begin + static_cast<int>(threadIdx.x) - lane; first < end;
         first += kSelectThreads) {
      const bool there = first + lane < end;
      const uint64_t key = there ? ranking.Key(first + lane) : kNoKey;
      const bool mine = there && key <= limit;  // the limit may be kNoKey
      const unsigned all = __ballot_sync(kAllLanes, mine);
      int at = 0;
      if (lane == 0 && all != 0) at = atomicAdd(taken, __popc(all));
      at = __shfl_sync(kAllLanes, at, 0);
      if (mine) keys[at + __popc(all & ((1u << lane) - 1))] = key;
    }
    blocks.sync();
    if (rank > 0) return;
    PadAndSortKeys(keys_, chunk_.tokens);
    FillFromKeys(head);
  }

  // Extremes of a head's ranked slots; `moved`: after the moves of EvictLowest, that is, with the
  // ring's oldest tokens in the first of the evicted slots.
  __device__ Extremes HeadExtremes(const Ranking& ranking, bool moved) const {
    const int n = moved ? in_ring_ : 0;
    const uint64_t last = n > 0 ? keys_[n - 1] : 0;
    Extremes e = Extremes::None();
    for (int j = threadIdx.x; j < candidates_; j += kSelectThreads) {
      const bool taken = n > 0 && j >= rules_.sinks && ranking.Key(j) <= last;
      if (!taken) e.Add(ranking.At(j));
    }
    for (int i = threadIdx.x; i < n; i += kSelectThreads) e.Add(ranking.At(RingSlot(i)));
    e.low_score = ReduceBlock(e.low_score, Minimum(), INFINITY);
    e.high_score = ReduceBlock(e.high_score, Maximum(), -INFINITY);
    e.low_error = ReduceBlock(e.low_error, Minimum(), INFINITY);
    e.high_error = ReduceBlock(e.high_error, Maximum(), -INFINITY);
    return e;
  }

 private:
  __device__ int64_t At(int i, int head) const {
    return (int64_t{chunk_.first_token} + i) * table_.kv_heads + head;
  }
  // The i-th oldest token of the grace ring.
  __device__ int32_t RingSlot(int i) const { return GraceSlot(rules_, progress_, i); }

  __device__ void FillFromKeys(int head) const {
    const uint64_t* keys = keys_;
    Fill(head, [keys](int i) { return static_cast<int>(static_cast<uint32_t>(keys[i])); });
  }

  // The ring's oldest tokens move to the first of the evicted slots, the other evicted slots take
  // the chunk's first tokens, and the ring its last.
  template <class Evicted>
  __device__ void Fill(int head, const Evicted& evicted) const {
    const int n = chunk_.tokens;
    for (int i = threadIdx.x; i < n; i += kSelectThreads) {
      out_.moved_from[At(i, head)] = i < in_ring_ ? RingSlot(i) : -1;
      if (i < in_ring_) {
        out_.moved_to[At(i, head)] = evicted(i);
        out_.slots[At(n - in_ring_ + i, head)] = RingSlot(i);
      } else {
        out_.slots[At(i - in_ring_, head)] = evicted(i);
      }
    }
  }

  const Placement& out_;
  const SlotTable& table_;
  const Chunk& chunk_;
  const LaneRules rules_;
  const LaneProgress progress_;
  SelectMemory& memory_;
  uint64_t* keys_;
  const int in_ring_;
  const int candidates_;  // slots [0, candidates) are ranked: the grace ring is not
};

// Keys that find room where the histograms were, once those have been read; more are in scratch
// memory.
constexpr int kSharedKeys = kSelectWarps * kBins;

// Slots from which on the blocks of a cluster share a head's.
constexpr int kSharedSlots = 4096;

// By score alone. Blocks: chunks x KV heads, of each kBlocks. More than one: only where the code
// that runs is for compute capability 9.0 or later, and the keys have room in shared memory.
template <int kBlocks>
__global__ void __cluster_dims__(kBlocks, 1, 1) __launch_bounds__(kSelectThreads)
    PlaceByScoreKernel(Placement out, Batch batch, SlotTable table, int policy, uint64_t* scratch,
                       int room) {
  __shared__ SelectMemory memory;
  const int number = blockIdx.x / kBlocks;
  const Chunk chunk = batch.chunk[number];
  if (table.rules[chunk.lane].policy != policy) return;
  const int head = blockIdx.y;
  uint64_t* keys = scratch == nullptr ? &memory.warp[0][0]
                                      : scratch + (size_t(number) * table.kv_heads + head) * room;
  ScoredPlacement placement(out, table, chunk, memory, keys);
  if constexpr (kBlocks > 1) {
    if (placement.full() && placement.scored()) {
      return placement.EvictLowestTogether<kBlocks>(head, placement.RankingOf(head, false));
    }
    if (BlocksOfRow<kBlocks>().block_rank() > 0) return;
  }
  if (!placement.full()) {
    placement.PlaceInOrder(head);
  } else if (!placement.scored()) {
    placement.EvictWithoutScores(head);
  } else {
    placement.EvictLowest(head, placement.RankingOf(head, false));
  }
}

// Scores and errors are compared with those of all heads. Heads decide in ascending order, and a
// head that has decided counts with its moves carried out. A block a chunk.
__global__ void __launch_bounds__(kSelectThreads)
    PlaceWithErrorsKernel(Placement out, Batch batch, SlotTable table, int policy,
                          uint64_t* scratch, int room) {
  extern __shared__ Extremes heads[];  // [kv_heads]
  __shared__ SelectMemory memory;
  const Chunk chunk = batch.chunk[blockIdx.x];
  if (table.rules[chunk.lane].policy != policy) return;
  uint64_t* keys = scratch == nullptr ? &memory.warp[0][0] : scratch + size_t(blockIdx.x) * room;
  ScoredPlacement placement(out, table, chunk, memory, keys);
  if (!placement.full()) {
    for (int head = 0; head < table.kv_heads; ++head) placement.PlaceInOrder(head);
    return;
  }
  if (!placement.scored()) {
    for (int head = 0; head < table.kv_heads; ++head) placement.EvictWithoutScores(head);
    return;
  }
  for (int head = 0; head < table.kv_heads; ++head) {
    const Extremes e = placement.HeadExtremes(placement.RankingOf(head, true), false);
    if (threadIdx.x == 0) heads[head] = e;
  }
  for (int head = 0; head < table.kv_heads; ++head) {
    __syncthreads();
    Ranking ranking = placement.RankingOf(head, true);
    for (int other = 0; other < table.kv_heads; ++other) ranking.extremes.Add(heads[other]);
    placement.EvictLowest(head, ranking);
    const Extremes e = placement.HeadExtremes(ranking, true);
    __syncthreads();  // all have read the extremes
    if (threadIdx.x == 0) heads[head] = e;
  }
}

}  // namespace

void PlaceInRing(Stream& s, const Placement& out, const Batch& batch, const SlotTable& table,
                 int policy) {
  const int64_t pairs = int64_t{batch.max_chunk_tokens} * table.kv_heads;
  const dim3 grid(static_cast<unsigned>((pairs + kRingThreads - 1) / kRingThreads), batch.chunks);
  PlaceInRingKernel<<<grid, kRingThreads, 0, Native(s)>>>(out, batch, table, policy);
  CUDA_CHECK(cudaGetLastError());
}

// As PlaceByScore takes it.
size_t PlaceScratch(const PassShape& shape) {
  const int room = PowerOfTwoFrom(std::min(shape.tokens, shape.slots));
  if (room <= kSharedKeys) return 0;
  return size_t(shape.chunks) * shape.kv_heads * room * sizeof(uint64_t);
}

void PlaceByScore(Stream& s, const Placement& out, const Batch& batch, const SlotTable& table,
                  int policy, const ScoreRule& rule) {
  const int room = PowerOfTwoFrom(std::min(batch.max_chunk_tokens, table.slots));
  const size_t sets = size_t(batch.chunks) * (rule.errors ? 1 : table.kv_heads);
  uint64_t* scratch = nullptr;
  if (room > kSharedKeys) {
    scratch = static_cast<uint64_t*>(Scratch(s, sets * room * sizeof(uint64_t)));
  }
  if (rule.errors) {
    const size_t extremes = table.kv_heads * sizeof(Extremes);
    PlaceWithErrorsKernel<<<batch.chunks, kSelectThreads, extremes, Native(s)>>>(
        out, batch, table, policy, scratch, room);
  } else {
    const bool together = HasClusters(s) && scratch == nullptr && table.slots > kSharedSlots;
    const auto kernel = together ? PlaceByScoreKernel<kClusterBlocks> : PlaceByScoreKernel<1>;
    const dim3 grid(batch.chunks * (together ? kClusterBlocks : 1), table.kv_heads);
    kernel<<<grid, kSelectThreads, 0, Native(s)>>>(out, batch, table, policy, scratch, room);
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace keyline::cuda
