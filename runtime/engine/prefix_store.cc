#include "runtime/engine/prefix_store.h"

#include <glog/logging.h>

#include <utility>

#include "runtime/cache/chunk_plan.h"
#include "runtime/engine/sequence.h"

namespace keyline {

std::string PrefixKey(const LanePolicy& policy, const int32_t* tokens, int count) {
  std::string key = policy.policy;
  const auto append = [&key](const auto& value) {
    key.append(reinterpret_cast<const char*>(&value), sizeof(value));
  };
  key.push_back('\0');
  append(policy.cache_length.size());
  for (const int length : policy.cache_length) append(length);
  append(ChunkSize(policy));
  append(policy.sinks.value_or(-1));
  append(policy.grace);
  append(policy.keep_initial_fraction);
  append(policy.normalize_scores);
  append(policy.protect_begin);
  append(policy.protect_end);
  append(policy.max_protected_fraction);
  key.append(reinterpret_cast<const char*>(tokens), count * sizeof(*tokens));
  return key;
}

LaneImagePtr PrefixStore::Find(const std::string& key) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->image;
}

bool PrefixStore::StartMaking(const std::string& key) {
  if (max_bytes_ == 0 || by_key_.count(key) > 0) return false;
  return making_.insert(key).second;
}

void PrefixStore::Begin(Sequence& sequence) {
  if (sequence.request().prefix_tokens == 0) return;
  LaneImagePtr snapshot = Find(sequence.request().prefix_key);
  if (snapshot != nullptr) sequence.BeginWith(std::move(snapshot));
}

void PrefixStore::Keep(const Sequence& sequence, int room, std::vector<LaneSave>* saves) {
  const std::string& key = sequence.request().prefix_key;
  if (static_cast<int>(saves->size()) >= room || !StartMaking(key)) return;
  saves->push_back({.lane = sequence.lane,
                    .tokens = sequence.tokens_processed(),
                    .done = [this, key](absl::StatusOr<LaneImagePtr> image) {
                      if (image.ok()) {
                        Insert(key, *std::move(image));
                      } else {
                        LOG(WARNING) << "a prefix was not kept: " << image.status();
                        Abandon(key);
                      }
                    }});
}

void PrefixStore::Insert(const std::string& key, LaneImagePtr image) {
  making_.erase(key);
  if (by_key_.count(key) > 0) return;
  Entry entry{key, std::move(image)};
  const int64_t bytes = entry.bytes();
  if (bytes > max_bytes_) return;
  while (bytes_ + bytes > max_bytes_) {
    bytes_ -= entries_.back().bytes();
    by_key_.erase(entries_.back().key);
    entries_.pop_back();
  }
  entries_.push_front(std::move(entry));
  by_key_[key] = entries_.begin();
  bytes_ += bytes;
}

}  // namespace keyline
