// Unicode normalization form C (UAX #15): base characters and marks composed. Tables: nfc_data.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace keyline {

// In place. REQUIRES: text is UTF-8.
void ComposeNfc(std::string& text);

// ---- Tables, ascending by their first member.
struct CanonicalPair {  // `whole` decomposes to `first` and `second`
  uint32_t whole, first, second;
  bool composes;  // and the pair composes back
};
struct CanonicalSingle {  // `whole` decomposes to `other`, for good
  uint32_t whole, other;
};
struct MarkRange {  // code points that combine, with their canonical combining class
  uint32_t first, last;
  uint8_t combining_class;
};
std::span<const CanonicalPair> CanonicalPairs();
std::span<const CanonicalSingle> CanonicalSingles();
std::span<const MarkRange> MarkRanges();

}  // namespace keyline
