// StopMatcher: finds the first of several stop strings in a stream of text, across token borders,
// and withholds text while it may be part of one (an Aho-Corasick automaton). One per stream; for
// one thread at a time.
//
// The match that is complete first wins: waiting for one that began earlier but is still open could
// withhold text for ever. Of those that end at the same byte the longest wins.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace keyline {

class StopMatcher {
 public:
  // REQUIRES: no stop is empty. None at all is fine: all text passes.
  explicit StopMatcher(std::vector<std::string> stops);

  struct Result {
    std::string text;                  // may be shown now
    std::optional<std::string> match;  // the stop string that ended the stream
  };
  // Up to the match, if there is one; after it all further text is dropped.
  Result Push(std::string_view text);
  // The stream ends without a match: what was withheld.
  std::string Flush();

 private:
  struct Node {
    int fail = 0;
    int depth = 0;
    int match = -1;  // index into stops_ of the longest stop that ends here
  };
  int Child(int node, unsigned char byte) const;  // -1: none
  int Step(int node, unsigned char byte) const;

  std::vector<std::string> stops_;
  std::vector<Node> nodes_;                      // 0: the root
  absl::flat_hash_map<uint32_t, int> children_;  // by node << 8 | byte
  int state_ = 0;
  std::string withheld_;
  bool matched_ = false;
};

}  // namespace keyline
