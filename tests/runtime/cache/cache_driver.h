// CacheDriver: feeds a KvCache with made-up q, k and v, chunk by chunk, and remembers where each
// lane is. The vectors of a token depend on (stream, position) alone, so the same stream can be fed
// to another lane, in other company, or to the oracle.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/cache/kv_cache.h"
#include "tests/kernels/device_under_test.h"
#include "tests/reference/kv_lane_reference.h"

namespace keyline {

// Opens the CPU; aborts the test program if there is none.
std::unique_ptr<Device> OpenTestDevice(int threads = 2, const std::string& isa = "");

// q, k and v of one token, one behind the other.
std::vector<float> TokenVectors(const AttentionSpec& spec, uint64_t stream, int position);

// One chunk, or a piece of the first one, of a pass.
struct Feed {
  int lane = 0;
  int tokens = 0;
  uint64_t stream = 0;
  int chunk_tokens = 0;  // of the first chunk, where this is a piece of it; 0: a chunk by itself
};

class CacheDriver {
 public:
  // activations: type of qkv and of the output on the device.
  CacheDriver(Device& device, const CacheConfig& config, const KvCacheShape& shape,
              const AttentionSpec& spec, DType activations = DType::kF32);

  void Open(int lane, const LanePolicy& policy, int layer = 0);
  // One pass; the attention output of each feed, [tokens * heads * head_dim].
  std::vector<std::vector<float>> Run(const std::vector<Feed>& feeds);
  // Several passes, enqueued one behind the other before anything is read; of each what Run gives.
  std::vector<std::vector<std::vector<float>>> RunTogether(
      const std::vector<std::vector<Feed>>& passes);
  // The same as Run for one token of each of some lanes, through Stream::Replay: a device that can
  // records the second such pass and replays it from then on. REQUIRES: as many feeds each time.
  std::vector<std::vector<float>> RunRecorded(const std::vector<Feed>& feeds);
  // The same as Run for one feed.
  std::vector<float> Run(const Feed& feed) { return Run(std::vector<Feed>{feed})[0]; }
  // Tells where a lane is, after a restore.
  void SetPosition(int lane, int position) { positions_[lane] = position; }

  KvCache& cache() { return *cache_; }
  Stream& stream() { return *stream_; }
  const AttentionSpec& spec() const { return spec_; }

 private:
  // A pass, and its memory on the device.
  struct Pass {
    std::vector<Chunk> chunks;
    Batch batch;
    Tensor chunk, positions, token_chunk, qkv, out;
  };
  Pass Prepare(const std::vector<Feed>& feeds);
  void Enqueue(const Pass& pass);
  std::vector<std::vector<float>> Read(const Pass& pass);

  Device& device_;
  KvCacheShape shape_;
  AttentionSpec spec_;
  DType activations_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<KvCache> cache_;
  std::vector<int> positions_;
  int passes_ = 0;
  std::optional<Pass> recorded_;  // whose memory a recording reads and writes
};

// The oracle of a lane with these rules.
reference::KvLaneSpec ReferenceSpec(const std::string& storage, const KvCacheShape& shape,
                                    const AttentionSpec& spec, const LanePolicy& policy);
// Feeds it what a driver with these activations feeds its cache; the output as the driver's Run
// gives it. slots: [kv_heads][tokens] where the tokens go, in place of the oracle's own choice.
std::vector<double> RunReference(reference::KvLaneReference& lane, const AttentionSpec& spec,
                                 uint64_t stream, int position, int tokens,
                                 DType activations = DType::kF32,
                                 const std::vector<std::vector<int>>* slots = nullptr);

// Attention of this shape, without norms and RoPE.
AttentionSpec PlainSpec(int heads, int kv_heads, int head_dim);

}  // namespace keyline
