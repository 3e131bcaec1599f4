#include <glog/logging.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cpu/cache/cache_ops_cpu.h"
#include "kernels/cpu/cache/select_slots.h"
#include "kernels/cpu/cpu_device.h"

namespace keyline::cpu {
namespace {

// Below this many slots to rank a loop is not worth its barrier.
constexpr int64_t kSerialSlots = 16384;

// Lowest and highest score and error of a lane, over heads and slots that may be ranked.
struct Extremes {
  float low_score = std::numeric_limits<float>::infinity();
  float high_score = -std::numeric_limits<float>::infinity();
  float low_error = std::numeric_limits<float>::infinity();
  float high_error = -std::numeric_limits<float>::infinity();
};

float MinMaxed(float x, float low, float high) { return high > low ? (x - low) / (high - low) : 0; }

// What one chunk's ranking reads.
class Ranking {
 public:
  Ranking(const SlotTable& table, const Chunk& chunk, const ScoreRule& rule)
      : table_(table),
        rule_(rule),
        rules_(table.rules[chunk.lane]),
        lane_(chunk.lane),
        tokens_(chunk.first_position),
        last_of_first_(table.progress[chunk.lane].first_chunk - 1) {}

  // Slots [0, candidates()) are ranked: the grace ring is not.
  int candidates() const { return rules_.length - rules_.grace; }

  // Score of each candidate of a head, by age if the lane asks for it.
  void Scores(int head, float* out) const {
    const float* score = table_.scores + Row(head);
    std::copy_n(score, candidates(), out);
    if (!rules_.normalize) return;
    const int32_t* pos = table_.slot_pos + Row(head);
    for (int j = 0; j < candidates(); ++j) {
      out[j] /= static_cast<float>(tokens_ - std::max(pos[j], last_of_first_));
    }
  }

  Extremes FindExtremes() const {
    Extremes e;
    std::vector<float> scores(candidates());
    for (int head = 0; head < table_.kv_heads; ++head) {
      Scores(head, scores.data());
      const float* errors = table_.errors + Row(head);
      for (int j = 0; j < candidates(); ++j) {
        e.low_score = std::min(e.low_score, scores[j]);
        e.high_score = std::max(e.high_score, scores[j]);
        e.low_error = std::min(e.low_error, errors[j]);
        e.high_error = std::max(e.high_error, errors[j]);
      }
    }
    return e;
  }

  void Ranks(int head, const Extremes& e, float* out) const {
    Scores(head, out);
    if (!rule_.errors) return;
    const float* errors = table_.errors + Row(head);
    constexpr float kWeight = 0.5f;  // c of the design: how scores weigh against errors
    for (int j = 0; j < candidates(); ++j) {
      const float score = MinMaxed(out[j], e.low_score, e.high_score);
      const float error = MinMaxed(errors[j], e.low_error, e.high_error);
      out[j] = kWeight * score + (kWeight - 1) / 2 * error + (1 - kWeight);
    }
  }

 private:
  int64_t Row(int head) const { return (int64_t{lane_} * table_.kv_heads + head) * table_.slots; }

  const SlotTable& table_;
  const ScoreRule& rule_;
  const LaneRules& rules_;
  int lane_;
  int32_t tokens_;
  int32_t last_of_first_;
};

// The n slots of a head that a full lane gives up, in the order in which they are taken.
void ChooseEvicted(const LaneRules& rules, const LaneProgress& progress, const Ranking& ranking,
                   const Extremes& extremes, int head, int n, int32_t* evicted) {
  if (!progress.scored) {
    const int kept =
        std::max(std::min(rules.keep_initial, rules.length - rules.grace - n), rules.sinks);
    for (int i = 0; i < n; ++i) evicted[i] = kept + i;
    return;
  }
  static thread_local std::vector<float> ranks;
  ranks.resize(ranking.candidates());
  ranking.Ranks(head, extremes, ranks.data());
  SelectLowest(ranks.data(), rules.sinks, ranking.candidates(), n, evicted);
}

}  // namespace

void PlaceInRing(Stream& /*s*/, const Placement& out, const Batch& batch, const SlotTable& table,
                 int policy) {
  for (int c = 0; c < batch.chunks; ++c) {
    const Chunk& chunk = batch.chunk[c];
    const LaneRules& rules = table.rules[chunk.lane];
    if (rules.policy != policy) continue;
    const int before = rules.protect_begin - rules.sinks;  // slots of the ring before the range
    const int ring = rules.length - rules.sinks - (rules.protect_end - rules.protect_begin);
    CHECK(chunk.tokens <= ring || chunk.first_position == 0 ||
          chunk.first_position + chunk.tokens <= rules.length)
        << "a chunk of " << chunk.tokens << " tokens for a ring of " << ring;
    for (int i = 0; i < chunk.tokens; ++i) {
      int32_t slot = chunk.first_position + i;
      if (slot >= rules.length) {
        slot = (slot - rules.length) % ring;
        slot += slot < before ? rules.sinks : rules.protect_end - before;
      }
      const int64_t row = int64_t{chunk.first_token + i} * table.kv_heads;
      std::fill_n(out.slots + row, table.kv_heads, slot);
      if (out.moved_from != nullptr) std::fill_n(out.moved_from + row, table.kv_heads, -1);
    }
  }
}

void PlaceByScore(Stream& s, const Placement& out, const Batch& batch, const SlotTable& table,
                  int policy, const ScoreRule& rule) {
  const int heads = table.kv_heads;
  static thread_local std::vector<Extremes> extremes;
  extremes.assign(batch.chunks, {});
  int64_t ranked = 0;
  for (int c = 0; c < batch.chunks; ++c) {
    const Chunk& chunk = batch.chunk[c];
    const LaneRules& rules = table.rules[chunk.lane];
    if (rules.policy != policy || chunk.first_position + chunk.tokens <= rules.length) continue;
    CHECK(chunk.first_position >= rules.length &&
          chunk.tokens <= rules.length - rules.grace - rules.sinks)
        << "a chunk of " << chunk.tokens << " tokens at " << chunk.first_position
        << " for a lane of " << rules.length << " slots, grace " << rules.grace << ", sinks "
        << rules.sinks;
    ranked += int64_t{heads} * rules.length;
    if (rule.errors && table.progress[chunk.lane].scored) {
      extremes[c] = Ranking(table, chunk, rule).FindExtremes();
    }
  }
  const Extremes* chunk_extremes = extremes.data();  // the loop's threads have vectors of their own
  const auto place = [&](int c, int head) {
    const Chunk& chunk = batch.chunk[c];
    const LaneRules& rules = table.rules[chunk.lane];
    if (rules.policy != policy) return;
    const auto at = [&](int i) { return int64_t{chunk.first_token + i} * heads + head; };
    const int n = chunk.tokens;
    for (int i = 0; i < n; ++i) out.moved_from[at(i)] = -1;
    if (chunk.first_position + n <= rules.length) {
      for (int i = 0; i < n; ++i) out.slots[at(i)] = chunk.first_position + i;
      return;
    }
    const LaneProgress& progress = table.progress[chunk.lane];
    static thread_local std::vector<int32_t> evicted;
    evicted.resize(n);
    ChooseEvicted(rules, progress, Ranking(table, chunk, rule), chunk_extremes[c], head, n,
                  evicted.data());
    // The ring's oldest tokens move to the first of the evicted slots, the other evicted slots take
    // the chunk's first tokens, and the ring its last.
    const int in_ring = std::min(n, rules.grace);
    for (int i = 0; i < n; ++i) {
      if (i < in_ring) {
        const int ring_slot = rules.length - rules.grace + (progress.ring_next + i) % rules.grace;
        out.moved_from[at(i)] = ring_slot;
        out.moved_to[at(i)] = evicted[i];
        out.slots[at(n - in_ring + i)] = ring_slot;
      } else {
        out.slots[at(i - in_ring)] = evicted[i];
      }
    }
  };
  const auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      place(static_cast<int>(i / heads), static_cast<int>(i % heads));
    }
  };
  const int64_t tasks = int64_t{batch.chunks} * heads;
  if (ranked <= kSerialSlots) {
    body(0, tasks);
  } else {
    AsCpu(s).pool().ParallelFor(tasks, body);
  }
}

}  // namespace keyline::cpu
