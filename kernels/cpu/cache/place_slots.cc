#include <glog/logging.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/cpu/cache/cache_ops_cpu.h"
#include "kernels/cpu/cache/select_slots.h"
#include "kernels/cpu/cpu_device.h"

namespace keyline::cpu {
namespace {

// Below this many slots to rank a loop is not worth its barrier.
constexpr int64_t kSerialSlots = 16384;

// Lowest and highest score and error of the slots of one head that may be ranked.
struct Extremes {
  float low_score = std::numeric_limits<float>::infinity();
  float high_score = -std::numeric_limits<float>::infinity();
  float low_error = std::numeric_limits<float>::infinity();
  float high_error = -std::numeric_limits<float>::infinity();

  void Add(float score, float error) { Add({score, score, error, error}); }
  void Add(const Extremes& e) {
    low_score = std::min(low_score, e.low_score);
    high_score = std::max(high_score, e.high_score);
    low_error = std::min(low_error, e.low_error);
    high_error = std::max(high_error, e.high_error);
  }
};

float MinMaxed(float x, float low, float high) { return high > low ? (x - low) / (high - low) : 0; }

// What one chunk's ranking reads.
class Ranking {
 public:
  Ranking(const SlotTable& table, const Chunk& chunk)
      : table_(table),
        rules_(table.rules[chunk.lane]),
        lane_(chunk.lane),
        tokens_(chunk.first_position),
        last_of_first_(table.progress[chunk.lane].first_chunk - 1) {}

  // Slots [0, candidates()) are ranked: the grace ring is not.
  int candidates() const { return rules_.length - rules_.grace; }

  // Score of each candidate of a head, by age if the lane asks for it.
  void Scores(int head, float* out) const {
    std::copy_n(table_.scores + Row(head), candidates(), out);
    if (!rules_.normalize) return;
    const int32_t* pos = table_.slot_pos + Row(head);
    for (int j = 0; j < candidates(); ++j) out[j] /= Age(pos[j]);
  }

  // The same, without a copy where the scores are the ranks.
  const float* PlainRanks(int head, float* memory) const {
    if (!rules_.normalize) return table_.scores + Row(head);
    Scores(head, memory);
    return memory;
  }

  // What the n slots `evicted` of a head will hold is in `ring`, [n]; n may be 0.
  Extremes HeadExtremes(int head, int n, const int32_t* evicted, const int32_t* ring) const {
    std::vector<float> scores(candidates());
    Scores(head, scores.data());
    const float* error = table_.errors + Row(head);
    std::vector<float> errors(error, error + candidates());
    for (int i = 0; i < n; ++i) {
      const float score = table_.scores[Row(head) + ring[i]];
      const int32_t pos = table_.slot_pos[Row(head) + ring[i]];
      scores[evicted[i]] = rules_.normalize ? score / Age(pos) : score;
      errors[evicted[i]] = error[ring[i]];
    }
    Extremes e;
    for (int j = 0; j < candidates(); ++j) e.Add(scores[j], errors[j]);
    return e;
  }

  // Rank of each candidate of a head that mixes in its error.
  void MixedRanks(int head, const Extremes& e, float* out) const {
    Scores(head, out);
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
  float Age(int32_t pos) const {
    return static_cast<float>(tokens_ - std::max(pos, last_of_first_));
  }

  const SlotTable& table_;
  const LaneRules& rules_;
  int lane_;
  int32_t tokens_;
  int32_t last_of_first_;
};

// The choice for one chunk whose lane follows the rules of PlaceByScore.
class ScoredPlacement {
 public:
  ScoredPlacement(const Placement& out, const SlotTable& table, const Chunk& chunk)
      : out_(out),
        table_(table),
        chunk_(chunk),
        rules_(table.rules[chunk.lane]),
        progress_(table.progress[chunk.lane]),
        ranking_(table, chunk),
        in_ring_(std::min(chunk.tokens, rules_.grace)) {}

  bool full() const { return chunk_.first_position + chunk_.tokens > rules_.length; }

  void PlaceInOrder(int head) const {
    for (int i = 0; i < chunk_.tokens; ++i) {
      out_.slots[At(i, head)] = chunk_.first_position + i;
      out_.moved_from[At(i, head)] = -1;
    }
  }

  // By score alone: each head for itself.
  void PlaceHead(int head) const {
    Memory& memory = ThreadMemory();
    if (progress_.scored) {
      SelectLowest(ranking_.PlainRanks(head, memory.ranks.data()), rules_.sinks,
                   ranking_.candidates(), chunk_.tokens, memory.evicted.data());
    } else {
      EvictWithoutScores(memory.evicted.data());
    }
    Fill(head, memory.evicted.data());
  }

  // Scores and errors are compared with those of all heads. Heads decide in ascending order, and a
  // head that has decided counts with its ring's oldest tokens where they move to.
  void PlaceHeadsWithErrors() const {
    Memory& memory = ThreadMemory();
    std::vector<int32_t> ring(in_ring_);
    for (int i = 0; i < in_ring_; ++i) ring[i] = RingSlot(i);
    std::vector<Extremes> extremes;
    extremes.reserve(table_.kv_heads);
    for (int head = 0; head < table_.kv_heads; ++head) {
      extremes.push_back(ranking_.HeadExtremes(head, 0, nullptr, nullptr));
    }
    for (int head = 0; head < table_.kv_heads; ++head) {
      if (progress_.scored) {
        Extremes all;
        for (const Extremes& e : extremes) all.Add(e);
        ranking_.MixedRanks(head, all, memory.ranks.data());
        SelectLowest(memory.ranks.data(), rules_.sinks, ranking_.candidates(), chunk_.tokens,
                     memory.evicted.data());
        extremes[head] = ranking_.HeadExtremes(head, in_ring_, memory.evicted.data(), ring.data());
      } else {
        EvictWithoutScores(memory.evicted.data());
      }
      Fill(head, memory.evicted.data());
    }
  }

 private:
  struct Memory {
    std::vector<float> ranks;
    std::vector<int32_t> evicted;
  };

  Memory& ThreadMemory() const {
    static thread_local Memory memory;
    memory.ranks.resize(ranking_.candidates());
    memory.evicted.resize(chunk_.tokens);
    return memory;
  }

  int64_t At(int i, int head) const {
    return int64_t{chunk_.first_token + i} * table_.kv_heads + head;
  }
  // The i-th oldest token of the grace ring.
  int32_t RingSlot(int i) const {
    return rules_.length - rules_.grace + (progress_.ring_next + i) % rules_.grace;
  }

  void EvictWithoutScores(int32_t* evicted) const {
    const int n = chunk_.tokens;
    const int kept =
        std::max(std::min(rules_.keep_initial, rules_.length - rules_.grace - n), rules_.sinks);
    std::iota(evicted, evicted + n, kept);
  }

  // The ring's oldest tokens move to the first of the evicted slots, the other evicted slots take
  // the chunk's first tokens, and the ring its last.
  void Fill(int head, const int32_t* evicted) const {
    const int n = chunk_.tokens;
    for (int i = 0; i < n; ++i) {
      out_.moved_from[At(i, head)] = -1;
      if (i < in_ring_) {
        out_.moved_from[At(i, head)] = RingSlot(i);
        out_.moved_to[At(i, head)] = evicted[i];
        out_.slots[At(n - in_ring_ + i, head)] = RingSlot(i);
      } else {
        out_.slots[At(i - in_ring_, head)] = evicted[i];
      }
    }
  }

  const Placement& out_;
  const SlotTable& table_;
  const Chunk& chunk_;
  const LaneRules& rules_;
  const LaneProgress& progress_;
  Ranking ranking_;
  int in_ring_;
};

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
  }
  const auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = batch.chunk[i / heads];
      if (table.rules[chunk.lane].policy != policy) continue;
      const int head = static_cast<int>(i % heads);
      const ScoredPlacement placement(out, table, chunk);
      if (!placement.full()) {
        placement.PlaceInOrder(head);
      } else if (!rule.errors) {
        placement.PlaceHead(head);
      } else if (head == 0) {
        placement.PlaceHeadsWithErrors();
      }
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
