// KvCache: one layer's KV cache: a policy (where tokens go, what is evicted), a storage (number
// format of K and V) and the slot -> position table. Concrete; one verb, Attend.
//
// Thread: the rank's own. All calls enqueue on the stream, except where stated. Memory is allocated
// once, by Create, for all lanes; nothing grows with the length of a sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/batch.h"
#include "runtime/config/cache_config.h"

namespace keyline {

// Shape of one layer's cache.
struct KvCacheShape {
  int lanes = 1;
  int kv_heads = 0;
  int head_dim = 0;
  int length = 0;             // slots per lane and KV head that requests may use at most
  int max_tokens = 0;       // most tokens of a pass
  DType plain = DType::kF32;  // element type of the plain storage
};

// Bytes on the device. Pure arithmetic, for `keyline plan`.
struct KvCacheBytes {
  size_t per_lane = 0;   // physical: slots padded to a multiple of 64
  size_t workspace = 0;  // shared by all lanes of the layer
};

class KvCache {
 public:
  // INVALID_ARGUMENT names the field of `config` at fault and what would do.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(Device& device, const CacheConfig& config,
                                                         const KvCacheShape& shape);
  static absl::StatusOr<KvCacheBytes> BytesFor(const CacheConfig& config,
                                               const KvCacheShape& shape);
  ~KvCache();

  // A new sequence takes the lane: no trace of its predecessor stays. `layer` selects the length
  // where `policy` has one per layer. REQUIRES: ValidateLane(policy) was OK.
  void OpenLane(Stream& s, int lane, const LanePolicy& policy, int layer);

  // For every chunk: q/k norm and RoPE (in place in qkv), place, write, attend over the whole cache,
  // add attention mass, let the policy score.
  // qkv: [tokens, (heads + 2 * kv_heads) * head_dim], q then k then v; out: [tokens, heads * head_dim].
  void Attend(Stream& s, const Batch& batch, TensorView qkv, const AttentionSpec& spec,
              TensorView out);

  // Positions kept in a lane, ascending, per KV head. Waits for the stream: for traces and tests.
  std::vector<std::vector<int32_t>> KeptPositions(Stream& s, int lane) const;

  size_t device_bytes() const;

 private:
  struct State;
  explicit KvCache(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Whether caches built for `config` can serve a request that asks for `policy`; INVALID_ARGUMENT
// names field, value, limit and what would fit. `lengths[l]`: slots per lane of layer l.
absl::Status ValidateLane(const CacheConfig& config, const std::vector<int>& lengths,
                          const LanePolicy& policy, int prompt_tokens, int max_new_tokens,
                          int max_pass_tokens);

}  // namespace keyline
