#include "runtime/text/encode/bpe.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "runtime/text/prepare/utf8.h"

namespace keyline {
namespace {

// Words repeat; longer pieces hardly ever do.
constexpr size_t kLongestRemembered = 32;
// Ranks are kept as float priorities, exact up to here.
constexpr size_t kMaxMerges = size_t{1} << 24;

uint64_t Key(int64_t high, int64_t low) {
  return static_cast<uint64_t>(high) << 32 | static_cast<uint32_t>(low);
}

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

// The code point that `text`, which is not empty, ends with.
uint32_t LastChar(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return FirstChar(text.substr(at)).code_point;
}

// True where pair `a` merges after pair `b`.
constexpr auto kLater = [](const auto& a, const auto& b) {
  return a.priority < b.priority || (a.priority == b.priority && a.left > b.left);
};

std::string ToByteLevel(std::string_view bytes) {
  std::string spelled;
  for (const char byte : bytes) spelled += ByteLevelChar(static_cast<unsigned char>(byte));
  return spelled;
}

}  // namespace

Bpe::Bpe(const Vocabulary* vocabulary, const BpeOptions& options)
    : vocabulary_(vocabulary), options_(options) {
  for (int i = 0; i < 0x80; ++i) {
    const char c = static_cast<char>(i);
    ascii_.push_back(vocabulary->Find({&c, 1}));
  }
  has_mark_ =
      vocabulary->spelling() == Spelling::kMarkedSpaces && vocabulary->Find(kSpaceMark) >= 0;
  for (int32_t id = 0; has_mark_ && id < vocabulary->size(); ++id) {
    const std::string_view text = vocabulary->text(id);
    for (size_t at = 1; (at = text.find(kSpaceMark, at)) != text.npos; at += kSpaceMark.size()) {
      before_mark_.insert(LastChar(text.substr(0, at)));
    }
  }
}

// Whole texts come as one piece where a vocabulary marks spaces. No token spans "x" and a following
// mark unless some token has just these two side by side, so there the text may be cut: its words
// are then short, and remembered. `mark`: offset of a mark in `piece`.
bool Bpe::MayCutBefore(std::string_view piece, size_t mark) const {
  return mark > 0 && !before_mark_.contains(LastChar(piece.substr(0, mark)));
}

absl::Status Bpe::AddMerge(std::string_view left, std::string_view right) {
  const int32_t left_id = vocabulary_->Find(left), right_id = vocabulary_->Find(right);
  const int32_t whole = vocabulary_->Find(absl::StrCat(View(left), View(right)));
  if (left_id < 0 || right_id < 0 || whole < 0) {
    return absl::InvalidArgumentError(absl::StrCat("merge ", merges_.size(), " (\"", View(left),
                                                   "\" with \"", View(right), "\"): ",
                                                   left_id < 0    ? "the left part"
                                                   : right_id < 0 ? "the right part"
                                                                  : "the result",
                                                   " is not in the vocabulary"));
  }
  if (merges_.size() == kMaxMerges) {
    return absl::InvalidArgumentError(absl::StrCat("more than ", kMaxMerges, " merges"));
  }
  merges_.try_emplace(Key(left_id, right_id), Merge{static_cast<int32_t>(merges_.size()), whole});
  return absl::OkStatus();
}

void Bpe::Encode(std::span<const std::string_view> pieces, std::vector<int32_t>& ids) const {
  Scratch scratch;
  // Where in `ids` the tokens of a short piece seen before are: begin << 32 | end.
  absl::flat_hash_map<absl::string_view, uint64_t> seen;
  const auto encode = [&](std::string_view piece) {
    if (piece.empty()) return;
    if (piece.size() > kLongestRemembered) {
      EncodePiece(piece, scratch, ids);
      return;
    }
    const auto [entry, added] = seen.try_emplace(View(piece), 0);
    if (added) {
      const size_t begin = ids.size();
      EncodePiece(piece, scratch, ids);
      entry->second = Key(begin, ids.size());
    } else {
      for (uint64_t i = entry->second >> 32; i < (entry->second & 0xFFFFFFFF); ++i) {
        ids.push_back(ids[i]);
      }
    }
  };
  for (std::string_view piece : pieces) {
    if (has_mark_) {
      for (size_t at = 0; (at = piece.find(kSpaceMark, at)) != piece.npos;) {
        if (MayCutBefore(piece, at)) {
          encode(piece.substr(0, at));
          piece.remove_prefix(at);
          at = 0;
        }
        at += kSpaceMark.size();
      }
    }
    encode(piece);
  }
}

void Bpe::Cut(std::string_view piece, std::vector<Symbol>& symbols) const {
  symbols.clear();
  const bool byte_level = vocabulary_->spelling() == Spelling::kByteLevel;
  for (size_t at = 0; at < piece.size();) {
    const auto first = static_cast<unsigned char>(piece[at]);
    Symbol symbol{.id = -1,
                  .previous = static_cast<int32_t>(symbols.size()) - 1,
                  .next = 0,
                  .begin = static_cast<uint32_t>(at),
                  .size = 1,
                  .whole = false};
    if (byte_level) {
      symbol.id = vocabulary_->byte_token(first);
    } else if (const auto match = whole_.Longest(piece.substr(at)); match.length > 0) {
      symbol.id = match.value;
      symbol.size = static_cast<uint32_t>(match.length);
      symbol.whole = true;
    } else if (first < 0x80) {
      symbol.id = ascii_[first];
    } else {
      symbol.size = static_cast<uint32_t>(Utf8Length(first));
      symbol.id = vocabulary_->Find(piece.substr(at, symbol.size));
    }
    at += symbol.size;
    symbol.next = at < piece.size() ? static_cast<int32_t>(symbols.size()) + 1 : -1;
    symbols.push_back(symbol);
  }
}

void Bpe::PushPair(std::string_view piece, int32_t left, Scratch& scratch) const {
  if (left < 0) return;
  const Symbol& a = scratch.symbols[left];
  if (a.next < 0) return;
  const Symbol& b = scratch.symbols[a.next];
  if (a.whole || b.whole) return;
  Pair pair{.priority = 0, .left = left, .size = a.size + b.size, .id = -1};
  if (options_.by_score) {
    if (pair.size > vocabulary_->longest_text()) return;
    pair.id = vocabulary_->Find(piece.substr(a.begin, pair.size));
    if (pair.id < 0) return;
    const TokenKind kind = vocabulary_->kind(pair.id);
    if (kind == TokenKind::kUnused) {
      scratch.unused_cuts[Key(a.begin, pair.size)] = a.size;
    } else if (kind != TokenKind::kNormal && kind != TokenKind::kUserDefined) {
      return;  // what looks like "<s>" or "<0x0A>" in a text is text
    }
    pair.priority = vocabulary_->score(pair.id);
  } else {
    if (a.id < 0 || b.id < 0) return;
    const auto merge = merges_.find(Key(a.id, b.id));
    if (merge == merges_.end()) return;
    pair.id = merge->second.id;
    pair.priority = -static_cast<float>(merge->second.rank);
  }
  scratch.heap.push_back(pair);
}

void Bpe::EncodePiece(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  if (options_.ignore_merges) {
    const int32_t id = vocabulary_->Find(
        vocabulary_->spelling() == Spelling::kByteLevel ? ToByteLevel(piece) : std::string(piece));
    if (id >= 0 && vocabulary_->kind(id) == TokenKind::kNormal) {
      ids.push_back(id);
      return;
    }
  }
  std::vector<Symbol>& symbols = scratch.symbols;
  std::vector<Pair>& heap = scratch.heap;
  Cut(piece, symbols);
  heap.clear();
  scratch.unused_cuts.clear();
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    PushPair(piece, static_cast<int32_t>(i), scratch);
  }
  std::make_heap(heap.begin(), heap.end(), kLater);

  const auto push = [&](int32_t left) {
    const size_t before = heap.size();
    PushPair(piece, left, scratch);
    if (heap.size() > before) std::push_heap(heap.begin(), heap.end(), kLater);
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), kLater);
    const Pair pair = heap.back();
    heap.pop_back();
    Symbol& left = symbols[pair.left];
    // Since it was found, either part may have been merged with another.
    if (left.size == 0 || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    if (left.size + right.size != pair.size) continue;
    left.id = pair.id;
    left.size = pair.size;
    left.next = right.next;
    right.size = 0;
    if (left.next >= 0) symbols[left.next].previous = pair.left;
    push(left.previous);
    push(pair.left);
  }

  for (int32_t i = 0; i >= 0; i = symbols[i].next) Emit(piece, symbols[i], scratch, ids);
}

void Bpe::Emit(std::string_view piece, const Symbol& symbol, const Scratch& scratch,
               std::vector<int32_t>& ids) const {
  const bool unused =
      options_.by_score && symbol.id >= 0 && vocabulary_->kind(symbol.id) == TokenKind::kUnused;
  if (symbol.id >= 0 && !unused) {
    ids.push_back(symbol.id);
    return;
  }
  if (unused) {
    if (const auto cut = scratch.unused_cuts.find(Key(symbol.begin, symbol.size));
        cut != scratch.unused_cuts.end()) {
      Symbol left = symbol, right = symbol;
      left.size = cut->second;
      right.begin += left.size;
      right.size -= left.size;
      for (Symbol* part : {&left, &right}) {
        part->id = vocabulary_->Find(piece.substr(part->begin, part->size));
        Emit(piece, *part, scratch, ids);
      }
      return;
    }
  }
  if (options_.byte_fallback) {
    const size_t begin = ids.size();
    for (const char byte : piece.substr(symbol.begin, symbol.size)) {
      ids.push_back(vocabulary_->byte_token(static_cast<unsigned char>(byte)));
    }
    if (std::find(ids.begin() + begin, ids.end(), -1) == ids.end()) return;
    ids.resize(begin);
  }
  if (options_.unknown < 0) return;
  const bool fused =
      options_.fuse_unknown && !ids.empty() && ids.back() == options_.unknown && symbol.begin > 0;
  if (!fused) ids.push_back(options_.unknown);
}

}  // namespace keyline
