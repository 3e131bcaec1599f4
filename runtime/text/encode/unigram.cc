#include "runtime/text/encode/unigram.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "runtime/text/prepare/utf8.h"

namespace keyline {
namespace {

// Below the least probable piece, so that an unknown character is the last resort (SentencePiece's
// value: it decides ties and must agree).
constexpr float kUnknownPenalty = 10.0f;

constexpr uint32_t kUnreached = 0xFFFFFFFF;

struct Best {  // way to reach a byte offset
  float score = 0;
  int32_t id = -1;
  uint32_t begin = kUnreached;
};

}  // namespace

Unigram::Unigram(const Vocabulary* vocabulary, int32_t unknown, bool byte_fallback)
    : vocabulary_(vocabulary), unknown_(unknown), byte_fallback_(byte_fallback) {
  std::vector<std::pair<std::string_view, int32_t>> entries;
  float least = std::numeric_limits<float>::max();
  best_score_ = std::numeric_limits<float>::lowest();
  for (int32_t id = 0; id < vocabulary->size(); ++id) {
    const TokenKind kind = vocabulary->kind(id);
    if (kind != TokenKind::kNormal && kind != TokenKind::kUserDefined) continue;
    entries.emplace_back(vocabulary->text(id), id);
    if (kind == TokenKind::kNormal) {
      least = std::min(least, vocabulary->score(id));
      best_score_ = std::max(best_score_, vocabulary->score(id));
    }
  }
  if (least > best_score_) least = best_score_ = 0;  // no normal pieces
  unknown_score_ = least - kUnknownPenalty;
  pieces_ = PrefixTrie(std::move(entries));
}

void Unigram::Encode(std::span<const std::string_view> pieces, std::vector<int32_t>& ids) const {
  for (const std::string_view piece : pieces) EncodePiece(piece, ids);
}

void Unigram::EncodePiece(std::string_view piece, std::vector<int32_t>& ids) const {
  std::vector<Best> best(piece.size() + 1);
  const auto offer = [&](size_t begin, size_t end, int32_t id, float score) {
    // Sums are floats, as in SentencePiece: their rounding decides ties and must agree.
    if (best[end].begin == kUnreached || score > best[end].score) {
      best[end] = {score, id, static_cast<uint32_t>(begin)};
    }
  };
  for (size_t at = 0; at < piece.size();) {
    const size_t char_size = Utf8Length(static_cast<unsigned char>(piece[at]));
    bool covered = false;
    pieces_.ForEach(piece.substr(at), [&](int32_t id, size_t length) {
      // A user-defined piece always wins over what it is made of.
      const double score = vocabulary_->kind(id) == TokenKind::kUserDefined
                               ? static_cast<float>(length) * best_score_ - 0.1
                               : vocabulary_->score(id);
      offer(at, at + length, id, best[at].score + score);
      covered |= length == char_size;
    });
    if (!covered) offer(at, at + char_size, unknown_, best[at].score + unknown_score_);
    at += char_size;
  }

  std::vector<std::pair<size_t, size_t>> cuts;  // [begin, end), last first
  for (size_t end = piece.size(); end > 0; end = best[end].begin) {
    cuts.emplace_back(best[end].begin, end);
  }
  bool after_unknown = false;
  for (auto cut = cuts.rbegin(); cut != cuts.rend(); ++cut) {
    const int32_t id = best[cut->second].id;
    if (id != unknown_) {
      ids.push_back(id);
      after_unknown = false;
      continue;
    }
    const size_t first = ids.size();
    if (byte_fallback_) {
      for (size_t i = cut->first; i < cut->second; ++i) {
        ids.push_back(vocabulary_->byte_token(static_cast<unsigned char>(piece[i])));
      }
      if (std::find(ids.begin() + first, ids.end(), -1) == ids.end()) continue;
      ids.resize(first);
    }
    if (!after_unknown) ids.push_back(unknown_);
    after_unknown = true;
  }
}

}  // namespace keyline
