// What a KvCache holds. Private to kv_cache.cc and saved_lane.cc.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/device/tensor.h"
#include "runtime/cache/kv_cache.h"
#include "runtime/cache/kv_storage.h"
#include "runtime/cache/policies/eviction_policy.h"

namespace keyline {

// Memory of one pass, of no meaning between passes: layers may share it.
struct CacheWorkspace {
  Tensor slots;       // int32 [tokens, kv_heads], as are the next two; of passes of longer chunks
  Tensor moved_from;  // not allocated where no policy moves
  Tensor moved_to;
  Tensor mass;  // float32 [lanes, kv_heads, slots]; not allocated where no policy scores

  size_t bytes() const {
    return slots.bytes() + moved_from.bytes() + moved_to.bytes() + mass.bytes();
  }
};

struct KvCache::State {
  Device* device = nullptr;
  KvCacheShape shape;
  int slots = 0;                                          // physical
  std::vector<std::unique_ptr<EvictionPolicy>> policies;  // enabled ones; LaneRules::policy counts
  std::vector<PolicyRule> policy_rules;                   // theirs
  PolicyNeeds needs;                                      // of any of them
  KvStorage storage;
  Tensor rules;     // LaneRules [lanes]
  Tensor progress;  // LaneProgress [lanes]
  Tensor slot_pos;  // [lanes, kv_heads, slots], as are the next three
  Tensor scores;
  Tensor value_norms;
  Tensor errors;
  // Where chunks of one token go, int32 [1 or 3, lanes * kv_heads]: slots, and the moves where a
  // policy moves. Not shared: all layers' are chosen before the first one attends.
  Tensor decode_places;
  bool placed = false;  // PlaceAhead has done so, for the next call of Attend
  std::shared_ptr<CacheWorkspace> workspace;
  bool owns_workspace = false;  // or a sibling's
  // Host copies of the rules: read by OpenLane's copies, which may run later.
  std::vector<LaneRules> lane_rules;
  bool record = false;
  std::vector<ChunkPlacement> placements;

  SlotTable table() const;
  Placement placement(const Batch& batch) const;
  PlacedCache placed_cache(const Batch& batch) const {
    return {storage.memory(), table(), placement(batch)};
  }
  // Number of the policy of this name, or -1.
  int PolicyNumber(const std::string& name) const;
  void SetRules(Stream& s, int lane, const LaneRules& rules);
  LaneProgress Progress(Stream& s, int lane) const;
  // `first` slots of each KV head of one of the [lanes, kv_heads, slots] tensors, head after head.
  template <class T>
  std::vector<T> ReadSlots(Stream& s, const Tensor& tensor, int lane, int first) const {
    std::vector<T> host(size_t(shape.kv_heads) * first);
    for (int g = 0; g < shape.kv_heads; ++g) {
      s.CopyAsync(host.data() + size_t(g) * first, Slots<T>(tensor, lane, g), first * sizeof(T));
    }
    s.Synchronize();
    return host;
  }
  template <class T>
  T* Slots(const Tensor& tensor, int lane, int head) const {
    return tensor.view().as<T>() + (int64_t{lane} * shape.kv_heads + head) * slots;
  }
};

}  // namespace keyline
