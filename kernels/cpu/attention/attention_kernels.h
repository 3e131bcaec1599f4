// AttentionKernels: the inner loops of attention in one instruction set, over one segment of slots.
//
// A segment is softmax by itself: (m, l, o) = (largest logit, sum of exp(logit - m), sum of
// exp(logit - m) * v). Segments have a fixed length and are merged in order, so a query's result
// depends neither on how the work is cut nor on what else is in the batch: each logit is one chain
// of multiply-adds over the head dimension, each element of o one over the segment's slots, and a
// slot that is not seen adds exactly nothing. All instruction sets give the same bits.
// Plain data only, as in kernels/cpu/isa/kernel_set.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops/cache_memory.h"

namespace keyline {

constexpr int kSegmentSlots = 256;
constexpr int kMaxQueryRows = 48;  // queries x heads that one call takes

// K and V of a segment; layout: kernels/cpu/cache/kv_layout.h.
struct SegmentMemory {
  KvFormat k_format = KvFormat::kF32;
  KvFormat v_format = KvFormat::kF32;
  int head_dim = 0;
  const std::byte* k = nullptr;
  int64_t k_tile_bytes = 0;
  int64_t k_scales = 0;  // bytes from a tile to its scales
  const std::byte* v = nullptr;
  int64_t v_row_bytes = 0;
  int64_t v_scales = 0;                // bytes from a row to its scales
  const int32_t* positions = nullptr;  // [kSegmentSlots or up to the last physical slot]
  int slots = 0;                       // in use, from the first on
};

// What a logit is made of, besides q and k.
struct LogitRule {
  float scale = 0;
  float softcap = 0;   // 0 = none
  int32_t window = 0;  // 0 = none
};

struct SegmentArgs {
  SegmentMemory memory;
  LogitRule rule;
  int rows = 0;
  const float* const* q = nullptr;       // [rows] vectors of head_dim
  const int32_t* q_positions = nullptr;  // [rows]
  // [rows, weights_stride]: exp(logit - m), 0 where not seen. Working memory unless `fill`; without
  // it, slots far from what any row sees are not written.
  float* weights = nullptr;
  int64_t weights_stride = 0;
  bool fill = false;
  float* m = nullptr;  // [rows]; -inf where the query sees nothing
  float* l = nullptr;  // [rows]
  float* o = nullptr;  // [rows, o_stride], whole vectors of 16; not written where m is -inf
  int64_t o_stride = 0;
};

// mass[j] += sum over rows of exp(logit - m) * factor.
struct MassArgs {
  SegmentMemory memory;
  LogitRule rule;
  int rows = 0;
  const float* const* q = nullptr;
  const int32_t* q_positions = nullptr;
  const float* m = nullptr;       // [rows], over all slots
  const float* factor = nullptr;  // [rows]; 0: the row sees nothing
  float* weights = nullptr;       // [rows, kSegmentSlots], working memory
  float* mass = nullptr;          // [kSegmentSlots]
};

struct AttentionKernels {
  void (*attend_segment)(const SegmentArgs&) = nullptr;
  void (*add_mass)(const MassArgs&) = nullptr;
  // Merges a later segment into what is known so far; (*m, *l) start at (-inf, 0).
  void (*merge)(float* m, float* l, float* o, float segment_m, float segment_l,
                const float* segment_o, int head_dim) = nullptr;
  // out = o / l, 0 where l is 0.
  void (*finish)(float* out, const float* o, float l, int head_dim) = nullptr;
  // exp(x), as the kernels compute it.
  float (*exp)(float x) = nullptr;
  // mass[j] = sum over rows of weights[r, j] * factor[r], for n slots.
  void (*sum_weights)(float* mass, const float* weights, int64_t weights_stride,
                      const float* factor, int rows, int n) = nullptr;
  // K as float32 tiles [16 * head_dim] each, V as float32 rows padded to 16.
  void (*widen_k)(const SegmentMemory&, float* out) = nullptr;
  void (*widen_v)(const SegmentMemory&, float* out) = nullptr;
};

// Of the instruction set with this name (KernelSet::name).
const AttentionKernels& AttentionKernelsFor(const char* isa);

extern const AttentionKernels kAvx512Attention;
extern const AttentionKernels kAvx2Attention;
extern const AttentionKernels kScalarAttention;

}  // namespace keyline
