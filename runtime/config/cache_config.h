// CacheConfig: which KV cache a sequence gets. Semantics: ARCHITECTURE.md, "The KV cache".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace keyline {

// The most that a chunk size is unless asked for.
constexpr int kDefaultChunkSize = 512;

// What one request may choose. Fixed for the life of its lane.
struct LanePolicy {
  std::string policy = "dense";  // key of runtime/cache/cache_registry.cc
  // Slots per KV head: one number for all layers, or one per layer.
  std::vector<int> cache_length;
  // Tokens per chunk after the first. Unset: DefaultChunkSize (runtime/cache/kv_cache.h).
  std::optional<int> chunk_size;
  std::optional<int> sinks;  // unset: the policy's documented default
  int grace = 0;             // slots of the ring of most recent tokens
  double keep_initial_fraction = 0.05;
  bool normalize_scores = false;
  int max_chunk = 0;      // 0 = none; lowers chunk_size
  int protect_begin = 0;  // token range that is never evicted
  int protect_end = 0;
  // Instead of the range: from the prompt's start to the first match of this regular expression
  // (runtime/text/end_marker.h). Admission turns it into a range.
  std::string protect_until;
  double max_protected_fraction = 0.5;

  int length_of(int layer) const {
    return cache_length.size() == 1 ? cache_length[0] : cache_length.at(layer);
  }
};

// What a server's caches are built for.
struct CacheConfig {
  LanePolicy policy;                 // default of every request
  std::vector<std::string> enabled;  // policies that requests may ask for; policy.policy if empty
  std::string storage = "plain";     // key of runtime/cache/cache_registry.cc
  int lanes = 1;
};

}  // namespace keyline
