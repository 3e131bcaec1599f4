#include "runtime/text/prepare/prefix_trie.h"

#include <algorithm>

namespace keyline {

PrefixTrie::PrefixTrie(std::vector<std::pair<std::string_view, int32_t>> entries) {
  roots_.fill(kNone);
  std::stable_sort(entries.begin(), entries.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  entries.erase(std::unique(entries.begin(), entries.end(),
                            [](const auto& a, const auto& b) { return a.first == b.first; }),
                entries.end());
  if (!entries.empty() && entries.front().first.empty()) entries.erase(entries.begin());
  if (entries.empty()) return;

  // Level by level: a node is a range of sorted entries that share its first `depth` bytes.
  struct Range {
    size_t begin, end;
  };
  std::vector<Range> level = {{0, entries.size()}};
  bool at_root = true;
  for (size_t depth = 0; !level.empty(); ++depth) {
    std::vector<Range> next;
    for (const Range& range : level) {
      if (!at_root) nodes_.push_back(static_cast<uint32_t>(labels_.size()));
      size_t begin = range.begin;
      if (entries[begin].first.size() == depth) ++begin;  // it ends here
      while (begin < range.end) {
        const auto label = static_cast<unsigned char>(entries[begin].first[depth]);
        size_t end = begin + 1;
        while (end < range.end && static_cast<unsigned char>(entries[end].first[depth]) == label) {
          ++end;
        }
        if (at_root) roots_[label] = static_cast<uint32_t>(labels_.size());
        labels_.push_back(label);
        values_.push_back(entries[begin].first.size() == depth + 1 ? entries[begin].second : -1);
        next.push_back({begin, end});
        begin = end;
      }
    }
    at_root = false;
    level = std::move(next);
  }
  nodes_.push_back(static_cast<uint32_t>(labels_.size()));
}

uint32_t PrefixTrie::Child(uint32_t node, unsigned char label) const {
  const auto begin = labels_.begin() + nodes_[node], end = labels_.begin() + nodes_[node + 1];
  const auto found = std::lower_bound(begin, end, label);
  if (found == end || *found != label) return kNone;
  return static_cast<uint32_t>(found - labels_.begin());
}

PrefixTrie::Match PrefixTrie::Longest(std::string_view text) const {
  Match match;
  ForEach(text, [&](int32_t value, size_t length) { match = {value, length}; });
  return match;
}

}  // namespace keyline
