// StopMatcher: finds the first of several stop strings in a stream of text, across token borders,
// and withholds text while it may be part of one (an Aho-Corasick automaton).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace keyline {

class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);

  struct Result {
    std::string text;                  // may be shown now
    std::optional<std::string> match;  // the stop string that ended the stream
  };
  // After a match all further text is dropped.
  Result Push(std::string_view text);
  // The stream ends without a match: what was withheld.
  std::string Flush();

 private:
  struct Node {
    int next[256];
    int fail = 0;
    int depth = 0;
    int match = -1;  // index into stops_ of the longest stop that ends here
  };
  std::vector<std::string> stops_;
  std::vector<Node> nodes_;
  int state_ = 0;
  std::string withheld_;
  bool matched_ = false;
};

}  // namespace keyline
