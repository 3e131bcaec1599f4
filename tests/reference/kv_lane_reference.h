// KvLaneReference: one lane of one layer's KV cache, as the design's text says it, in plain loops
// and double: the oracle for runtime/cache and for the cache operations of every backend. Shares no
// code with them. Slow.
//
// A chunk goes Place, Write, Attend, Score (Step does all four); the parts are public so that tests
// can put synthetic mass in, or sum it over lanes.
#pragma once

#include <string>
#include <vector>

namespace keyline::reference {

// Number format of stored values: rounding to a float format, or quantisation to 8 or 4 bits.
enum class Stored { kF32, kBF16, kF16, kInt8, kInt4 };

// What is read back after `values` was stored.
std::vector<double> ReadBack(const std::vector<float>& values, Stored stored);

struct KvLaneSpec {
  std::string policy = "dense";
  int length = 0;
  int sinks = 0;  // as it comes out of the defaults
  int grace = 0;
  double keep_initial_fraction = 0.05;
  bool normalize_scores = false;
  int protect_begin = 0;  // protected slots, after capping
  int protect_end = 0;
  int heads = 1;
  int kv_heads = 1;
  int head_dim = 0;
  double scale = 1;
  int window = 0;
  double softcap = 0;
  Stored k = Stored::kF32;
  Stored v = Stored::kF32;
};

// [head][slot]
using PerSlot = std::vector<std::vector<double>>;

class KvLaneReference {
 public:
  explicit KvLaneReference(const KvLaneSpec& spec);

  // q: [n * heads * head_dim], k, v: [n * kv_heads * head_dim], already rotated. Returns the
  // output, [n * heads * head_dim].
  std::vector<double> Step(int n, const std::vector<float>& q, const std::vector<float>& k,
                           const std::vector<float>& v);

  // Chooses slots [kv_heads][n] and carries out moves.
  std::vector<std::vector<int>> Place(int n);
  void Write(int n, const std::vector<std::vector<int>>& slots, const std::vector<float>& k,
             const std::vector<float>& v);
  // Also leaves the mass of the chunk in mass().
  std::vector<double> Attend(int n, const std::vector<float>& q);
  // Scores by `mass`, unless this was the first chunk, and counts the chunk as processed.
  void Score(int n, const PerSlot& mass);

  const std::vector<std::vector<int>>& slot_pos() const { return slot_pos_; }  // [head][slot]
  const PerSlot& scores() const { return scores_; }
  const PerSlot& mass() const { return mass_; }
  int ring_next() const { return ring_next_; }
  // Slots whose former tokens the last Place gave up, [head][...], in order; empty if none.
  const std::vector<std::vector<int>>& evicted() const { return evicted_; }
  std::vector<std::vector<int>> Kept() const;  // positions, ascending

 private:
  std::vector<double> Rank(int head) const;
  std::vector<double> Normalised(int head) const;

  KvLaneSpec spec_;
  int tokens_ = 0;
  int first_chunk_ = 0;
  bool scored_ = false;
  int ring_next_ = 0;
  std::vector<std::vector<int>> slot_pos_;
  std::vector<std::vector<int>> evicted_;
  std::vector<std::vector<std::vector<double>>> k_, v_;  // [head][slot][dim]
  PerSlot scores_, norms_, errors_, mass_;
};

}  // namespace keyline::reference
