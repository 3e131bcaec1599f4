#include "runtime/engine/cache_ledger.h"

#include <algorithm>

namespace keyline {

int64_t CacheLedger::Evicted(const Entry& entry, int layer) {
  const int length = entry.lengths[layer];
  return std::max(entry.tokens - length, 0) - std::max(entry.begin - length, 0);
}

void CacheLedger::Advance(RequestId request, const LanePolicy& policy, int first_position,
                          int tokens) {
  std::lock_guard lock(mutex_);
  const auto [at, is_new] = running_.try_emplace(request);
  Entry& entry = at->second;
  if (is_new) {
    entry.begin = first_position;
    for (size_t l = 0; l < evicted_.size(); ++l) {
      entry.lengths.push_back(policy.length_of(static_cast<int>(l)));
    }
  }
  entry.tokens = first_position + tokens;
}

void CacheLedger::Close(RequestId request, int tokens) {
  std::lock_guard lock(mutex_);
  const auto found = running_.find(request);
  if (found == running_.end()) return;
  found->second.tokens = tokens;
  for (size_t l = 0; l < evicted_.size(); ++l) {
    evicted_[l] += Evicted(found->second, static_cast<int>(l));
  }
  running_.erase(found);
}

void CacheLedger::AddTo(std::vector<LayerCacheStats>& stats) const {
  std::lock_guard lock(mutex_);
  for (size_t l = 0; l < evicted_.size(); ++l) {
    stats[l].evicted += evicted_[l];
    for (const auto& [request, entry] : running_) {
      stats[l].slots_used += std::min(entry.tokens, entry.lengths[l]);
      stats[l].evicted += Evicted(entry, static_cast<int>(l));
    }
  }
}

}  // namespace keyline
