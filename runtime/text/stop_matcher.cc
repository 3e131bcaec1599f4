#include "runtime/text/stop_matcher.h"

#include <glog/logging.h>

#include <algorithm>
#include <utility>

namespace keyline {

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  nodes_.emplace_back();
  std::vector<std::pair<int, unsigned char>> edges = {{0, 0}};  // into node i: parent and byte
  for (size_t i = 0; i < stops_.size(); ++i) {
    CHECK(!stops_[i].empty()) << "stop string " << i << " is empty";
    int node = 0;
    for (const char c : stops_[i]) {
      const auto byte = static_cast<unsigned char>(c);
      const auto [entry, added] = children_.try_emplace(static_cast<uint32_t>(node) << 8 | byte,
                                                        static_cast<int>(nodes_.size()));
      if (added) {
        nodes_.push_back({.fail = 0, .depth = nodes_[node].depth + 1, .match = -1});
        edges.emplace_back(node, byte);
      }
      node = entry->second;
    }
    if (nodes_[node].match < 0) nodes_[node].match = static_cast<int>(i);
  }
  // Breadth first: the failure link of a node needs those of all shorter ones.
  std::vector<std::vector<int>> levels;
  for (int node = 1; node < static_cast<int>(nodes_.size()); ++node) {
    levels.resize(std::max<size_t>(levels.size(), nodes_[node].depth));
    levels[nodes_[node].depth - 1].push_back(node);
  }
  for (const std::vector<int>& level : levels) {
    for (const int node : level) {
      const auto [parent, byte] = edges[node];
      Node& made = nodes_[node];
      made.fail = parent == 0 ? 0 : Step(nodes_[parent].fail, byte);
      // A stop that ends here as the tail of another: shorter, so only where none of its own does.
      if (made.match < 0) made.match = nodes_[made.fail].match;
    }
  }
}

int StopMatcher::Child(int node, unsigned char byte) const {
  const auto found = children_.find(static_cast<uint32_t>(node) << 8 | byte);
  return found == children_.end() ? -1 : found->second;
}

int StopMatcher::Step(int node, unsigned char byte) const {
  for (;; node = nodes_[node].fail) {
    if (const int child = Child(node, byte); child >= 0) return child;
    if (node == 0) return 0;
  }
}

StopMatcher::Result StopMatcher::Push(std::string_view text) {
  Result result;
  if (matched_) return result;
  const size_t before = withheld_.size();
  withheld_ += text;
  for (size_t i = 0; i < text.size(); ++i) {
    state_ = Step(state_, static_cast<unsigned char>(text[i]));
    if (nodes_[state_].match < 0) continue;
    matched_ = true;
    result.match = stops_[nodes_[state_].match];
    result.text = withheld_.substr(0, before + i + 1 - result.match->size());
    withheld_.clear();
    return result;
  }
  // The state's depth is how much of the end may be the beginning of a stop.
  const size_t shown = withheld_.size() - nodes_[state_].depth;
  result.text = withheld_.substr(0, shown);
  withheld_.erase(0, shown);
  return result;
}

std::string StopMatcher::Flush() {
  state_ = 0;
  return std::exchange(withheld_, "");
}

}  // namespace keyline
