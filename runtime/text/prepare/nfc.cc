#include "runtime/text/prepare/nfc.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "runtime/text/prepare/utf8.h"

namespace keyline {
namespace {

// Nothing below this changes under NFC, alone or beside others of its kind.
constexpr uint32_t kFirstOfInterest = 0x300;

// Hangul syllables decompose by arithmetic (Unicode, section 3.12).
constexpr uint32_t kSyllables = 0xAC00, kLead = 0x1100, kVowel = 0x1161, kTrail = 0x11A7;
constexpr uint32_t kLeads = 19, kVowels = 21, kTrails = 28;

struct Mark {
  uint32_t code_point;
  uint8_t combining_class;
};

uint8_t CombiningClass(uint32_t c) {
  if (c < kFirstOfInterest) return 0;
  const auto ranges = MarkRanges();
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), c,
                                      [](uint32_t v, const MarkRange& r) { return v < r.first; });
  if (after == ranges.begin()) return 0;
  const MarkRange& range = *(after - 1);
  return c <= range.last ? range.combining_class : 0;
}

template <typename Row>
const Row* FindRow(std::span<const Row> rows, uint32_t whole) {
  const auto at = std::lower_bound(rows.begin(), rows.end(), whole,
                                   [](const Row& row, uint32_t v) { return row.whole < v; });
  return at != rows.end() && at->whole == whole ? &*at : nullptr;
}

void Decompose(uint32_t c, std::vector<Mark>& out) {
  if (c >= kSyllables && c < kSyllables + kLeads * kVowels * kTrails) {
    const uint32_t index = c - kSyllables;
    out.push_back({kLead + index / (kVowels * kTrails), 0});
    out.push_back({kVowel + index / kTrails % kVowels, 0});
    if (index % kTrails > 0) out.push_back({kTrail + index % kTrails, 0});
  } else if (const auto* single = FindRow(CanonicalSingles(), c)) {
    Decompose(single->other, out);
  } else if (const auto* pair = FindRow(CanonicalPairs(), c)) {
    Decompose(pair->first, out);
    Decompose(pair->second, out);
  } else {
    out.push_back({c, CombiningClass(c)});
  }
}

// What `a` and `b` compose to, or 0.
uint32_t Compose(uint32_t a, uint32_t b) {
  if (a >= kLead && a < kLead + kLeads && b >= kVowel && b < kVowel + kVowels) {
    return kSyllables + ((a - kLead) * kVowels + (b - kVowel)) * kTrails;
  }
  if (a >= kSyllables && a < kSyllables + kLeads * kVowels * kTrails &&
      (a - kSyllables) % kTrails == 0 && b > kTrail && b < kTrail + kTrails) {
    return a + (b - kTrail);
  }
  static const auto& pairs = *[] {
    auto* map = new absl::flat_hash_map<uint64_t, uint32_t>;
    for (const CanonicalPair& pair : CanonicalPairs()) {
      if (pair.composes) map->emplace(uint64_t{pair.first} << 32 | pair.second, pair.whole);
    }
    return map;
  }();
  const auto found = pairs.find(uint64_t{a} << 32 | b);
  return found == pairs.end() ? 0 : found->second;
}

}  // namespace

void ComposeNfc(std::string& text) {
  // 0xCC is the first byte of U+0300: most text has nothing at or above it.
  const bool plain = std::all_of(text.begin(), text.end(),
                                 [](char c) { return static_cast<unsigned char>(c) < 0xCC; });
  if (plain) return;

  std::vector<Mark> chars;
  chars.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = FirstChar(std::string_view(text).substr(at));

    Decompose(c.code_point, chars);
    at += c.length;
  }
  // Marks between two starters: in order of their class, equal classes as they stand.
  for (size_t i = 0; i < chars.size();) {
    size_t end = i + 1;
    if (chars[i].combining_class > 0) {
      while (end < chars.size() && chars[end].combining_class > 0) ++end;
      std::stable_sort(chars.begin() + i, chars.begin() + end, [](const Mark& a, const Mark& b) {
        return a.combining_class < b.combining_class;
      });
    }
    i = end;
  }
  // A character joins the last starter unless one between them has its class or a higher one.
  size_t kept = 0;
  size_t starter = chars.size();  // index in the kept part; chars.size(): none yet
  uint8_t last_class = 0;
  for (const Mark mark : std::vector<Mark>(chars)) {
    const bool adjacent = starter + 1 == kept;
    if (starter < kept && (adjacent || (last_class != 0 && last_class < mark.combining_class))) {
      if (const uint32_t whole = Compose(chars[starter].code_point, mark.code_point)) {
        chars[starter].code_point = whole;
        continue;
      }
    }
    if (mark.combining_class == 0) starter = kept;
    last_class = mark.combining_class;
    chars[kept++] = mark;
  }
  text.clear();
  for (size_t i = 0; i < kept; ++i) AppendUtf8(chars[i].code_point, text);
}

}  // namespace keyline
