// KvCache: one layer's KV cache: policies (where tokens go, what is evicted; one a lane), a storage
// (number format of K and V) and the slot -> position table. Concrete; one verb, Attend.
//
// Thread: the rank's own. All calls enqueue on the stream, except where stated. Memory is allocated
// once, by Create, for all lanes; nothing grows with the length of a sequence. The operations
// behind it: kernels/ops/cache_ops.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/batch.h"
#include "kernels/ops/cache_memory.h"
#include "runtime/cache/eviction_trace.h"
#include "runtime/config/cache_config.h"

namespace keyline {

// Shape of one layer's cache.
struct KvCacheShape {
  int lanes = 1;
  int kv_heads = 0;
  int head_dim = 0;
  int length = 0;             // slots per lane and KV head that requests may use at most
  int max_tokens = 0;         // most tokens of a pass
  DType plain = DType::kF32;  // element type of the plain storage
};

// Bytes on the device. Pure arithmetic, for `keyline plan`.
struct KvCacheBytes {
  size_t per_lane = 0;   // physical: slots padded to a multiple of 64
  size_t workspace = 0;  // shared by all lanes; once for layers that share it
};

// How much of a lane is in use.
struct LaneReport {
  int cache_length = 0;
  int slots_used = 0;
  int64_t evicted = 0;      // tokens dropped, per KV head
  int protected_slots = 0;  // of those used: sinks, protected range, grace ring
};

// The same for a lane of these rules that has been given `tokens` tokens: it needs no cache. Any
// thread.
LaneReport ReportLane(const LaneRules& rules, int tokens);

class KvCache {
 public:
  // INVALID_ARGUMENT names the field of `config` at fault and what would do. `sibling`: a cache of
  // another layer whose workspace is used if it is large enough; layers run one after the other.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(Device& device, const CacheConfig& config,
                                                         const KvCacheShape& shape,
                                                         const KvCache* sibling = nullptr);
  static absl::StatusOr<KvCacheBytes> BytesFor(const CacheConfig& config,
                                               const KvCacheShape& shape);
  // Whether a backend may copy K and V of such caches before chunks attend (PassShape).
  static bool CopiesSlots(const CacheConfig& config);
  ~KvCache();

  // A new sequence takes the lane: no trace of its predecessor stays. `layer` selects the length
  // where `policy` has one per layer; without any the lane has shape.length slots.
  // REQUIRES: ValidateLane(policy) was OK.
  void OpenLane(Stream& s, int lane, const LanePolicy& policy, int layer);

  // For every chunk: place, q/k norm and RoPE, write, attend over the whole cache, add attention
  // mass, let the policy score. qkv: [tokens, (heads + 2 * kv_heads) * head_dim], q then k then v;
  // what it holds afterwards is unspecified. out: [tokens, heads * head_dim].
  void Attend(Stream& s, const Batch& batch, TensorView qkv, const AttentionSpec& spec,
              TensorView out);

  // For passes of chunks of one token: may be called ahead of the calls of Attend of one pass, and
  // then does for all layers at once what each would begin with, the choice of slots, so that it
  // does not stand between a layer's operations. Nothing on devices and for policies that have no
  // such operation, for longer chunks, and while placements are recorded. `layers`: of one
  // CacheConfig; each attends to this batch next, nothing else.
  static void PlaceAhead(Stream& s, std::span<const std::unique_ptr<KvCache>> layers,
                         const Batch& batch);

  // ---- Reading and keeping a lane; these wait for the stream ------------------------------------

  // Positions kept, ascending, per KV head.
  std::vector<std::vector<int32_t>> KeptPositions(Stream& s, int lane) const;
  // Position in each slot in use, -1 = empty, per KV head: [kv_heads][cache length of the lane].
  std::vector<std::vector<int32_t>> SlotPositions(Stream& s, int lane) const;
  LaneReport Report(Stream& s, int lane) const;

  // The lane's whole state as bytes, O(cache length): restored into this layer of any server of the
  // same model and storage that has the policy, the sequence goes on bit for bit. Needs device
  // memory for one lane; RESOURCE_EXHAUSTED if there is none.
  absl::StatusOr<std::string> SaveLane(Stream& s, int lane) const;
  // Opens the lane with what was saved. INVALID_ARGUMENT: not such bytes, or torn;
  // FAILED_PRECONDITION: of another shape, storage or policy than this cache can serve. The lane is
  // closed after an error.
  absl::Status RestoreLane(Stream& s, int lane, std::string_view saved);
  // Whether the lane is what `policy` gives a sequence in this layer after `tokens` tokens; else
  // DATA_LOSS. For restored lanes: chunks are planned by the policy, so a lane of other rules would
  // be written where it must not.
  absl::Status CheckLane(Stream& s, int lane, const LanePolicy& policy, int layer,
                         int tokens) const;

  // While on, Attend notes where each chunk went, and waits for the stream to learn it.
  void RecordPlacements(bool on);
  std::vector<ChunkPlacement> TakePlacements();

  // Without the workspace of a sibling.
  size_t device_bytes() const;

 private:
  struct State;
  explicit KvCache(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Whether caches built for `config` can serve a request that asks for `policy`; INVALID_ARGUMENT
// names field, value, limit and what would fit. `lengths[l]`: slots per lane of layer l. Any
// thread.
absl::Status ValidateLane(const CacheConfig& config, const std::vector<int>& lengths,
                          const LanePolicy& policy, int prompt_tokens, int max_new_tokens,
                          int max_pass_tokens);

// The chunk size of a policy that names none, a pure function of the cache's configuration because
// it changes answers: the largest, up to `most`, with which no chunk exceeds what the policy allows
// in any layer (SEMANTICS.md, section 3), and `most` for a policy that does not evict. Where none
// fits it is `most`, for ValidateLane to say so. Any thread.
int DefaultChunkSize(const LanePolicy& policy, const std::vector<int>& lengths, int most);

// What is unwise about a policy that ValidateLane accepts, for logs; empty: nothing.
std::string LaneWarning(const LanePolicy& policy, const std::vector<int>& lengths);

}  // namespace keyline
