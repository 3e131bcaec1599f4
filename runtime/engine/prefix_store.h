// PrefixStore: snapshots of lanes after prompt prefixes that several requests share, so that a long
// system prompt is computed once. Least recently used ones go first when memory runs out.
// Thread: the engine's.
#pragma once

#include <cstdint>
#include <list>
#include <set>
#include <string>
#include <unordered_map>

#include "runtime/config/cache_config.h"
#include "runtime/engine/lane_keeper.h"

namespace keyline {

// What a snapshot depends on: the prefix's tokens and everything about the cache policy. Pure; any
// thread.
std::string PrefixKey(const LanePolicy& policy, const int32_t* tokens, int count);

class PrefixStore {
 public:
  explicit PrefixStore(int64_t max_bytes) : max_bytes_(max_bytes) {}

  // A sequence that is about to get a lane begins with its prefix's snapshot, if there is one.
  void Begin(Sequence& sequence);
  // One that has processed its prefix: its lane is saved, unless there is a snapshot or somebody
  // makes it.
  void Keep(const Sequence& sequence, int room, std::vector<LaneSave>* saves);

  // The snapshot, which is now the most recently used one; null if there is none.
  LaneImagePtr Find(const std::string& key);
  // Whether a snapshot should be made: true once, until Insert or Abandon.
  bool StartMaking(const std::string& key);
  void Insert(const std::string& key, LaneImagePtr image);
  void Abandon(const std::string& key) { making_.erase(key); }

  int64_t bytes() const { return bytes_; }
  int size() const { return static_cast<int>(entries_.size()); }

 private:
  struct Entry {
    std::string key;
    LaneImagePtr image;
    int64_t bytes() const { return image->bytes() + 2 * static_cast<int64_t>(key.size()); }
  };

  const int64_t max_bytes_;
  int64_t bytes_ = 0;
  std::list<Entry> entries_;  // most recently used first
  std::unordered_map<std::string, std::list<Entry>::iterator> by_key_;
  std::set<std::string> making_;
};

}  // namespace keyline
