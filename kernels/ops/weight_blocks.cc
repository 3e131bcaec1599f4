#include "kernels/ops/weight_blocks.h"

#include <glog/logging.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/device/half.h"

namespace keyline {
namespace {

constexpr float kLargestHalf = 65504.0f;
constexpr uint16_t kHalfNan = 0x7e00;
constexpr int kMostQ4 = 15;

// The elements of a block that exist.
struct Elements {
  const float* x;
  int count;

  bool finite() const {
    return std::all_of(x, x + count, [](float v) { return std::isfinite(v); });
  }
};

// A scale that 16 bits can hold.
float AsHalf(float x) { return FromHalf(ToHalf(std::clamp(x, -kLargestHalf, kLargestHalf))); }

BlockQ8 QuantizeQ8(const Elements& e) {
  BlockQ8 block = {};
  if (!e.finite()) {
    block.scale = kHalfNan;
    return block;
  }
  float largest = 0;
  for (int i = 0; i < e.count; ++i) largest = std::max(largest, std::fabs(e.x[i]));
  const float scale = AsHalf(largest / 127.0f);
  block.scale = ToHalf(scale);
  if (scale == 0) return block;
  for (int i = 0; i < e.count; ++i) {
    block.codes[i] =
        static_cast<int8_t>(std::clamp(std::nearbyint(e.x[i] / scale), -127.0f, 127.0f));
  }
  return block;
}

// A choice of scale and min with the codes that follow from it.
struct ChoiceQ4 {
  float scale = 0;
  float min = 0;
  std::array<int, kWeightBlock> codes = {};
  double error = std::numeric_limits<double>::infinity();

  ChoiceQ4(const Elements& e, float wanted_scale, float wanted_min)
      : scale(AsHalf(wanted_scale)), min(AsHalf(wanted_min)) {
    error = 0;
    for (int i = 0; i < e.count; ++i) {
      const float code = scale == 0 ? 0.0f : std::nearbyint((e.x[i] - min) / scale);
      codes[i] = static_cast<int>(std::clamp(code, 0.0f, static_cast<float>(kMostQ4)));
      const double off = static_cast<double>(scale) * codes[i] + min - e.x[i];
      error += off * off;
    }
  }
};

// The scale and min of least squared error for the codes of `choice`, with the codes that follow.
ChoiceQ4 Refined(const Elements& e, const ChoiceQ4& choice) {
  double codes = 0, squares = 0, values = 0, products = 0;
  for (int i = 0; i < e.count; ++i) {
    const double code = choice.codes[i];
    codes += code;
    squares += code * code;
    values += e.x[i];
    products += code * e.x[i];
  }
  const double spread = e.count * squares - codes * codes;
  if (spread <= 0) return choice;
  const double scale = (e.count * products - codes * values) / spread;
  return {e, static_cast<float>(scale), static_cast<float>((values - scale * codes) / e.count)};
}

BlockQ4 QuantizeQ4(const Elements& e) {
  BlockQ4 block = {};
  if (!e.finite()) {
    block.scale = block.min = kHalfNan;
    return block;
  }
  const auto [least, most] = std::minmax_element(e.x, e.x + e.count);
  ChoiceQ4 best(e, *most / kMostQ4 - *least / kMostQ4, *least);
  for (int round = 0; round < 2; ++round) {
    const ChoiceQ4 next = Refined(e, best);
    if (!(next.error < best.error)) break;
    best = next;
  }
  block.scale = ToHalf(best.scale);
  block.min = ToHalf(best.min);
  for (int i = 0; i < kWeightBlock / 2; ++i) {
    block.codes[i] = static_cast<uint8_t>(best.codes[i] | best.codes[i + kWeightBlock / 2] << 4);
  }
  return block;
}

template <class Block>
void QuantizeBlocks(Block (*quantize)(const Elements&), const float* in, int64_t cols,
                    std::byte* out) {
  for (int64_t first = 0; first < cols; first += kWeightBlock, out += sizeof(Block)) {
    const int64_t count = std::min<int64_t>(kWeightBlock, cols - first);
    const Block block = quantize({in + first, static_cast<int>(count)});
    std::memcpy(out, &block, sizeof(block));
  }
}

}  // namespace

void QuantizeRow(DType dtype, const float* in, int64_t cols, std::byte* out) {
  CHECK(IsPacked(dtype)) << Name(dtype);
  if (dtype == DType::kQ8_0) return QuantizeBlocks(QuantizeQ8, in, cols, out);
  QuantizeBlocks(QuantizeQ4, in, cols, out);
}

}  // namespace keyline
