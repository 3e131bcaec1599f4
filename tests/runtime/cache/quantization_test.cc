// The quantised storages' numbers, exactly, as ops::PackLane shows them on any backend; and what a
// slot keeps while others are written.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "kernels/ops/cache_ops.h"
#include "runtime/cache/kv_storage.h"
#include "tests/runtime/cache/cache_driver.h"

namespace keyline {
namespace {

// One lane with one KV head.
class Slots {
 public:
  Slots(KvFormat format, int head_dim)
      : device_(OpenTestDevice(1)),
        stream_(device_->NewStream()),
        storage_(*KvStorage::Create(*device_, {format, format}, 1, 1, head_dim, 64)) {}

  void Write(int slot, const std::vector<float>& k, const std::vector<float>& v) {
    std::vector<float> qkv(k.size());  // a query that nobody reads
    qkv.insert(qkv.end(), k.begin(), k.end());
    qkv.insert(qkv.end(), v.begin(), v.end());
    LaneRules rules;
    rules.policy = 0;
    rules.length = 64;
    std::vector<int32_t> slot_pos(64);
    const SlotTable table{.lanes = 1,
                          .kv_heads = 1,
                          .slots = 64,
                          .rules = &rules,
                          .slot_pos = slot_pos.data(),
                          .value_norms = norms_.data(),
                          .errors = errors_.data()};
    const Chunk chunk{.lane = 0,
                      .first_token = 0,
                      .tokens = 1,
                      .first_position = 0,
                      .takes_mass = 0,
                      .chunk_tokens = 1,
                      .chunk_position = 0};
    const int32_t zero = 0;
    const int32_t at = slot;
    const Batch batch{.tokens = 1,
                      .chunks = 1,
                      .max_chunk_tokens = 1,
                      .chunk = &chunk,
                      .positions = &zero,
                      .token_chunk = &zero};
    const Placement placement{.slots = const_cast<int32_t*>(&at)};
    const TensorView row = MakeView(qkv.data(), DType::kF32, {1, static_cast<int64_t>(qkv.size())});
    ops::RotateAndWrite(*stream_, storage_.memory(), table, placement, row, batch,
                        PlainSpec(1, 1, storage_.memory().head_dim));
  }

  // Packed K of a slot, then its packed V.
  std::vector<uint8_t> Packed(int slot) {
    const KvMemory& kv = storage_.memory();
    std::vector<std::byte> all(ops::PackedLaneBytes(kv, 64));
    ops::PackLane(*stream_, all.data(), kv, 0, 64);
    const size_t row = KvPackedRowBytes(kv.k_format, kv.head_dim);
    std::vector<uint8_t> out(2 * row);
    std::memcpy(out.data(), all.data() + slot * row, row);
    std::memcpy(out.data() + row, all.data() + (64 + slot) * row, row);
    return out;
  }

  float norm(int slot) const { return norms_[slot]; }
  float error(int slot) const { return errors_[slot]; }

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  KvStorage storage_;
  std::vector<float> norms_ = std::vector<float>(64);
  std::vector<float> errors_ = std::vector<float>(64);
};

float FloatAt(const std::vector<uint8_t>& bytes, size_t at) {
  float x;
  std::memcpy(&x, bytes.data() + at, sizeof(x));
  return x;
}

struct Example {
  std::vector<float> values;
  float scale;
  float zero;
  std::vector<int> codes;
  bool exact;
};

class Int4Examples : public testing::TestWithParam<Example> {};

// The examples have four values; repeated they fill a block and do not change its range.
TEST_P(Int4Examples, AreExact) {
  const Example& example = GetParam();
  constexpr int kDim = 16;
  std::vector<float> x;
  for (int i = 0; i < kDim; ++i) x.push_back(example.values[i % 4]);
  Slots slots(KvFormat::kInt4, kDim);
  slots.Write(3, x, x);
  const std::vector<uint8_t> packed = slots.Packed(3);
  for (int i = 0; i < kDim / 2; ++i) {
    EXPECT_EQ(packed[i] >> 4, example.codes[i % 4]) << i;  // first half: high nibbles
    EXPECT_EQ(packed[i] & 15, example.codes[(kDim / 2 + i) % 4]) << i;
  }
  EXPECT_FLOAT_EQ(FloatAt(packed, kDim / 2), example.scale);
  EXPECT_EQ(FloatAt(packed, kDim / 2 + 4), example.zero);
  if (example.exact) {
    EXPECT_EQ(slots.error(3), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Design, Int4Examples,
    testing::Values(Example{{3, 4.5, 6, 10.5}, 0.5f, -6, {0, 3, 6, 15}, true},
                    Example{{-1, -0.75, 0, 0.5}, 0.1f, 10, {0, 2, 10, 15}, false},
                    Example{{100, 101, 102, 103}, 0.2f, -500, {0, 5, 10, 15}, true},
                    // A constant block has the smallest scale there is.
                    Example{{2, 2, 2, 2}, 0x1p-23f, -0x1p24f, {0, 0, 0, 0}, true},
                    Example{{0, 0, 0, 0}, 0x1p-23f, 0, {0, 0, 0, 0}, true},
                    // Halves to even: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2.
                    Example{{0, 0.5, 1.5, 15}, 1.0f, 0, {0, 0, 2, 15}, false}));

TEST(QuantizationTest, Int8HasOneBlockAHead) {
  constexpr int kDim = 40;
  std::vector<float> x(kDim);
  for (int i = 0; i < kDim; ++i) x[i] = static_cast<float>(i);
  x[39] = 255;
  Slots slots(KvFormat::kInt8, kDim);
  slots.Write(0, x, x);
  const std::vector<uint8_t> packed = slots.Packed(0);
  ASSERT_EQ(packed.size(), 2u * (kDim + 8));
  for (int i = 0; i < 39; ++i) EXPECT_EQ(packed[i], i);
  EXPECT_EQ(packed[39], 255);
  EXPECT_EQ(FloatAt(packed, kDim), 1.0f);
  EXPECT_EQ(FloatAt(packed, kDim + 4), 0.0f);
}

TEST(QuantizationTest, Int4HasBlocksOf32AndAShorterLastOne) {
  constexpr int kDim = 80;
  std::vector<float> x(kDim);
  for (int i = 0; i < kDim; ++i) x[i] = static_cast<float>((i % 16) * (1 << (i / 32)));
  Slots slots(KvFormat::kInt4, kDim);
  slots.Write(0, x, x);
  const std::vector<uint8_t> packed = slots.Packed(0);
  for (int block = 0; block < 3; ++block) {
    EXPECT_EQ(FloatAt(packed, kDim / 2 + 8 * block), static_cast<float>(1 << block));
  }
  EXPECT_EQ(packed[0], 0x00);              // elements 0 and 16
  EXPECT_EQ(packed[5], 0x55);              // 5 and 21
  EXPECT_EQ(packed[32 + 3], 3 << 4 | 11);  // last block: 67 and 75
  EXPECT_EQ(slots.error(0), 0);
}

TEST(QuantizationTest, NormsAndErrorsAreThoseBeforeQuantisation) {
  constexpr int kDim = 32;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> k(kDim), v(kDim);
  for (int i = 0; i < kDim; ++i) {
    k[i] = normal(random);
    v[i] = normal(random);
  }
  Slots slots(KvFormat::kInt4, kDim);
  slots.Write(9, k, v);
  const auto lost = [](const std::vector<float>& x) {
    const std::vector<double> back = reference::ReadBack(x, reference::Stored::kInt4);
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += (x[i] - back[i]) * (x[i] - back[i]);
    return std::sqrt(sum);
  };
  double squares = 0;
  for (float x : v) squares += double{x} * x;
  EXPECT_NEAR(slots.norm(9), std::sqrt(squares), 1e-5);
  EXPECT_NEAR(slots.error(9), lost(k) + lost(v), 1e-6);
}

class UntouchedSlots : public testing::TestWithParam<KvFormat> {};

TEST_P(UntouchedSlots, NeverChange) {
  constexpr int kDim = 48;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  Slots slots(GetParam(), kDim);
  const auto vector = [&](float size) {
    std::vector<float> x(kDim);
    for (float& e : x) e = size * normal(random);
    return x;
  };
  slots.Write(17, vector(1), vector(1));
  const std::vector<uint8_t> before = slots.Packed(17);
  for (int i = 0; i < 200; ++i) {
    const int slot = i % 64;
    if (slot != 17) slots.Write(slot, vector(100), vector(0.01f));
  }
  EXPECT_EQ(slots.Packed(17), before);
}

INSTANTIATE_TEST_SUITE_P(Formats, UntouchedSlots,
                         testing::Values(KvFormat::kF32, KvFormat::kBF16, KvFormat::kF16,
                                         KvFormat::kInt8, KvFormat::kInt4));

// What is not a number must not become undefined behaviour.
TEST(QuantizationTest, NonFiniteValuesStayWithinTheirSlot) {
  std::vector<float> x(16, 1.0f);
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), HUGE_VALF, -HUGE_VALF}) {
    for (KvFormat format : {KvFormat::kInt8, KvFormat::kInt4, KvFormat::kF16, KvFormat::kBF16}) {
      Slots slots(format, 16);
      const std::vector<uint8_t> neighbour = slots.Packed(4);
      x[7] = bad;
      slots.Write(5, x, x);
      EXPECT_EQ(slots.Packed(4), neighbour);
    }
  }
}

}  // namespace
}  // namespace keyline
