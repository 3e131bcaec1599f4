#include "kernels/cpu/cache/select_slots.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

namespace keyline::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The first of the lowest. Written so that the compiler compares several at once.
int32_t LowestIndex(const float* rank, int begin, int end) {
  constexpr int kLanes = 16;
  float lane[kLanes];
  std::fill_n(lane, kLanes, kInfinity);
  int i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lane[j] = rank[i + j] < lane[j] ? rank[i + j] : lane[j];
  }
  float lowest = kInfinity;
  for (; i < end; ++i) lowest = rank[i] < lowest ? rank[i] : lowest;
  for (float x : lane) lowest = x < lowest ? x : lowest;
  // Where nothing is below infinity all are equal.
  return lowest == kInfinity
             ? begin
             : static_cast<int32_t>(std::find(rank + begin, rank + end, lowest) - rank);
}

// Ascending with the float, NaN last, the two zeros equal.
uint32_t Orderable(float x) {
  if (x != x) x = kInfinity;
  const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

}  // namespace

void SelectLowest(const float* rank, int begin, int end, int count, int32_t* out) {
  if (count == 1) {
    *out = LowestIndex(rank, begin, end);
    return;
  }
  static thread_local std::vector<uint64_t> keys;
  keys.resize(end - begin);
  for (int i = begin; i < end; ++i) {
    keys[i - begin] = uint64_t{Orderable(rank[i])} << 32 | static_cast<uint32_t>(i);
  }
  if (count < end - begin) std::nth_element(keys.begin(), keys.begin() + count, keys.end());
  std::sort(keys.begin(), keys.begin() + count);
  for (int i = 0; i < count; ++i) out[i] = static_cast<int32_t>(keys[i] & 0xffffffffu);
}

}  // namespace keyline::cpu
