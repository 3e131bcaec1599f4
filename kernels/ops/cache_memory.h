// Plain data that cache operations read and write: one layer's K and V, its slot table, and where a
// pass puts its tokens. All pointers are device memory; the host values only size launches.
//
// KvMemory is the storage's side (what is kept, in which number format), SlotTable the policy's
// (which token is where, what it scored): an operation that chooses slots never sees K or V.
#pragma once

#include <cstddef>
#include <cstdint>

namespace keyline {

// Number format of stored K or V vectors. kInt8: one block a head vector; kInt4: blocks of 32
// elements (of 16 at the end of a head whose size is not a multiple of 32), the first half of a
// block in the high nibbles. Both asymmetric, float32 scale and zero point a block:
//   scale = max((max - min) / (2^bits - 1), 2^-23), zp = -round(min / scale),
//   q = clamp(round(x / scale) + zp, 0, 2^bits - 1), value (q - zp) * scale; halves round to even.
enum class KvFormat : uint8_t { kF32, kBF16, kF16, kInt8, kInt4 };

constexpr bool IsQuantized(KvFormat f) { return f == KvFormat::kInt8 || f == KvFormat::kInt4; }

// Elements of a block with a scale and a zero point of its own.
constexpr int KvBlock(KvFormat f, int head_dim) {
  return f == KvFormat::kInt4 && head_dim > 32 ? 32 : head_dim;
}
constexpr int KvBlocks(KvFormat f, int head_dim) {
  return IsQuantized(f) ? (head_dim + KvBlock(f, head_dim) - 1) / KvBlock(f, head_dim) : 0;
}

// Bytes of one slot's vector of one KV head, scales included, on every backend; how a backend
// arranges the vectors of a (lane, KV head) is its own affair. Vectors are padded to 16 elements.
constexpr size_t KvRowBytes(KvFormat f, int head_dim) {
  const size_t elements = (head_dim + 15) / 16 * 16;
  const size_t scales = KvBlocks(f, head_dim) * 2 * sizeof(float);
  switch (f) {
    case KvFormat::kF32:
      return elements * 4;
    case KvFormat::kBF16:
    case KvFormat::kF16:
      return elements * 2;
    case KvFormat::kInt8:
      return elements + scales;
    case KvFormat::kInt4:
      return elements / 2 + scales;
  }
  return 0;
}

// The same without padding, as ops::PackLane writes it.
constexpr size_t KvPackedRowBytes(KvFormat f, int head_dim) {
  const size_t padding = (head_dim + 15) / 16 * 16 - head_dim;
  return KvRowBytes(f, head_dim) - (f == KvFormat::kF32    ? padding * 4
                                    : f == KvFormat::kInt8 ? padding
                                    : f == KvFormat::kInt4 ? padding / 2
                                                           : padding * 2);
}

constexpr int kSlotPadding = 64;  // physical slots of a lane are a multiple of this
constexpr int PhysicalSlots(int length) {
  return (length + kSlotPadding - 1) / kSlotPadding * kSlotPadding;
}

// K and V of all lanes of a layer: [lanes, kv_heads, slots] vectors each.
struct KvMemory {
  KvFormat k_format = KvFormat::kF32;
  KvFormat v_format = KvFormat::kF32;
  int lanes = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int slots = 0;  // physical, a multiple of kSlotPadding
  std::byte* k = nullptr;
  std::byte* v = nullptr;
};

// What a lane's sequence asked for; written once, when the lane opens.
struct LaneRules {
  int32_t policy = -1;        // index in the cache's list of policies; -1: closed
  int32_t length = 0;         // slots that it may use
  int32_t sinks = 0;          // slots [0, sinks) are never evicted
  int32_t protect_begin = 0;  // nor [protect_begin, protect_end); sinks <= begin <= end
  int32_t protect_end = 0;
  int32_t grace = 0;         // the last slots: a ring of the most recent tokens
  int32_t keep_initial = 0;  // slots kept by an eviction without scores
  int32_t normalize = 0;     // 1: scores are ranked per token of age
  int32_t wants_mass = 0;    // 1: attention mass is taken from chunks that allow it
};

// How far a lane's sequence has come; advanced once a pass, by ops::AdvanceLanes.
struct LaneProgress {
  int32_t tokens = 0;       // processed so far
  int32_t first_chunk = 0;  // tokens of its first chunk
  int32_t scored = 0;       // 1 once mass has been taken
  int32_t ring_next = 0;    // the grace ring's oldest slot, counted from its first
};

// Which token is where. A sequence fills slots in order until its length is reached; from then on
// all of them are in use.
struct SlotTable {
  int lanes = 0;
  int kv_heads = 0;
  int slots = 0;                     // physical
  const LaneRules* rules = nullptr;  // [lanes]
  LaneProgress* progress = nullptr;  // [lanes]
  // [lanes, kv_heads, slots] each.
  int32_t* slot_pos = nullptr;   // position of the slot's token, -1 = empty
  float* scores = nullptr;       // null where no policy of the cache scores
  float* value_norms = nullptr;  // L2 norm of v before quantisation; null where not needed
  float* errors = nullptr;       // L2 norms of what quantisation lost of k and v; may be null
};

// Where a pass puts its tokens, per token of the packed batch and KV head: [tokens, kv_heads] each.
// First the moves, all at once, then the writes. The i-th token of a chunk also carries the chunk's
// i-th move; moved_from = -1: none.
struct Placement {
  int32_t* slots = nullptr;
  int32_t* moved_from = nullptr;  // null where no policy of the cache moves
  int32_t* moved_to = nullptr;
};

// A layer's cache, and where a pass puts its tokens.
struct PlacedCache {
  KvMemory kv;
  SlotTable table;
  Placement placement;
};

// How an H2O-like policy ranks and scores.
struct ScoreRule {
  bool value_norms = false;  // mass weighted by the norms of the values
  bool errors = false;       // rank mixes in what quantisation lost
  bool shared = false;       // mass summed over the chunks of a pass, one decision for all
};

// What a policy is to the kernels: how its lanes' tokens find their slots and what it learns.
struct PolicyRule {
  bool by_score = false;  // PlaceByScore and AddScores; else PlaceInRing
  ScoreRule score;
};

}  // namespace keyline
