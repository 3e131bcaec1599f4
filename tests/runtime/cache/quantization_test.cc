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
  Slots(const DeviceUnderTest& device, KvFormat format, int head_dim)
      : bench_(device, 1),
        storage_(*KvStorage::Create(bench_.device(), {format, format}, 1, 1, head_dim, kSlots)) {
    LaneRules rules;
    rules.policy = 0;
    rules.length = kSlots;
    const Chunk chunk{.lane = 0,
                      .first_token = 0,
                      .tokens = 1,
                      .first_position = 0,
                      .takes_mass = 0,
                      .chunk_tokens = 1,
                      .chunk_position = 0};
    table_ = {.lanes = 1,
              .kv_heads = 1,
              .slots = kSlots,
              .rules = bench_.Array(std::vector<LaneRules>{rules}),
              .slot_pos = bench_.Array(std::vector<int32_t>(kSlots)),
              .value_norms = bench_.Array(std::vector<float>(kSlots)),
              .errors = bench_.Array(std::vector<float>(kSlots))};
    batch_ = {.tokens = 1,
              .chunks = 1,
              .max_chunk_tokens = 1,
              .chunk = bench_.Array(std::vector<Chunk>{chunk}),
              .positions = bench_.Ints({0}),
              .token_chunk = bench_.Ints({0})};
  }

  void Write(int slot, const std::vector<float>& k, const std::vector<float>& v) {
    std::vector<float> qkv(k.size());  // a query that nobody reads
    qkv.insert(qkv.end(), k.begin(), k.end());
    qkv.insert(qkv.end(), v.begin(), v.end());
    const Placement placement{.slots = bench_.Array(std::vector<int32_t>{slot})};
    const TensorView row = bench_.Floats(1, static_cast<int64_t>(qkv.size()), qkv);
    ops::RotateAndWrite(bench_.stream(), storage_.memory(), table_, placement, row, batch_,
                        PlainSpec(1, 1, storage_.memory().head_dim));
  }

  // Packed K of a slot, then its packed V.
  std::vector<uint8_t> Packed(int slot) {
    const KvMemory& kv = storage_.memory();
    auto* packed = bench_.Array(std::vector<uint8_t>(ops::PackedLaneBytes(kv, kSlots)));
    ops::PackLane(bench_.stream(), reinterpret_cast<std::byte*>(packed), kv, 0, kSlots);
    const std::vector<uint8_t> all = bench_.Read(packed, ops::PackedLaneBytes(kv, kSlots));
    const size_t row = KvPackedRowBytes(kv.k_format, kv.head_dim);
    std::vector<uint8_t> out(2 * row);
    std::memcpy(out.data(), all.data() + slot * row, row);
    std::memcpy(out.data() + row, all.data() + (kSlots + slot) * row, row);
    return out;
  }

  float norm(int slot) { return bench_.Read(table_.value_norms, kSlots)[slot]; }
  float error(int slot) { return bench_.Read(table_.errors, kSlots)[slot]; }

 private:
  static constexpr int kSlots = 64;
  Workbench bench_;
  KvStorage storage_;
  SlotTable table_;
  Batch batch_;
};

// On every device whose activations hold the examples.
class QuantizationTest : public testing::TestWithParam<DeviceUnderTest> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(GetParam()); }
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

class Int4Examples : public testing::TestWithParam<std::tuple<Example, DeviceUnderTest>> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(std::get<1>(GetParam())); }
};

// The examples have four values; repeated they fill a block and do not change its range.
TEST_P(Int4Examples, AreExact) {
  const auto& [example, device] = GetParam();
  constexpr int kDim = 16;
  std::vector<float> x;
  for (int i = 0; i < kDim; ++i) x.push_back(example.values[i % 4]);
  Slots slots(device, KvFormat::kInt4, kDim);
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

const Example kExamples[] = {{{3, 4.5, 6, 10.5}, 0.5f, -6, {0, 3, 6, 15}, true},
                             {{-1, -0.75, 0, 0.5}, 0.1f, 10, {0, 2, 10, 15}, false},
                             {{100, 101, 102, 103}, 0.2f, -500, {0, 5, 10, 15}, true},
                             // A constant block has the smallest scale there is.
                             {{2, 2, 2, 2}, 0x1p-23f, -0x1p24f, {0, 0, 0, 0}, true},
                             {{0, 0, 0, 0}, 0x1p-23f, 0, {0, 0, 0, 0}, true},
                             // Halves to even: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2.
                             {{0, 0.5, 1.5, 15}, 1.0f, 0, {0, 0, 2, 15}, false}};

INSTANTIATE_TEST_SUITE_P(Design, Int4Examples,
                         testing::Combine(testing::ValuesIn(kExamples),
                                          testing::Values(DefaultCpu())));
INSTANTIATE_TEST_SUITE_P(cuda, Int4Examples,
                         testing::Combine(testing::ValuesIn(kExamples),
                                          testing::ValuesIn(CudasUnderTest())));

TEST_P(QuantizationTest, Int8HasOneBlockAHead) {
  constexpr int kDim = 40;
  std::vector<float> x(kDim);
  for (int i = 0; i < kDim; ++i) x[i] = static_cast<float>(i);
  x[39] = 255;
  Slots slots(GetParam(), KvFormat::kInt8, kDim);
  slots.Write(0, x, x);
  const std::vector<uint8_t> packed = slots.Packed(0);
  ASSERT_EQ(packed.size(), 2u * (kDim + 8));
  for (int i = 0; i < 39; ++i) EXPECT_EQ(packed[i], i);
  EXPECT_EQ(packed[39], 255);
  EXPECT_EQ(FloatAt(packed, kDim), 1.0f);
  EXPECT_EQ(FloatAt(packed, kDim + 4), 0.0f);
}

TEST_P(QuantizationTest, Int4HasBlocksOf32AndAShorterLastOne) {
  constexpr int kDim = 80;
  std::vector<float> x(kDim);
  for (int i = 0; i < kDim; ++i) x[i] = static_cast<float>((i % 16) * (1 << (i / 32)));
  Slots slots(GetParam(), KvFormat::kInt4, kDim);
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

TEST_P(QuantizationTest, NormsAndErrorsAreThoseBeforeQuantisation) {
  constexpr int kDim = 32;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> k(kDim), v(kDim);
  for (int i = 0; i < kDim; ++i) {
    k[i] = normal(random);
    v[i] = normal(random);
  }
  Slots slots(GetParam(), KvFormat::kInt4, kDim);
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

class UntouchedSlots : public testing::TestWithParam<std::tuple<KvFormat, DeviceUnderTest>> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(std::get<1>(GetParam())); }
};

TEST_P(UntouchedSlots, NeverChange) {
  constexpr int kDim = 48;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  Slots slots(std::get<1>(GetParam()), std::get<0>(GetParam()), kDim);
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

const KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBF16, KvFormat::kF16, KvFormat::kInt8,
                             KvFormat::kInt4};

INSTANTIATE_TEST_SUITE_P(Formats, UntouchedSlots,
                         testing::Combine(testing::ValuesIn(kFormats),
                                          testing::Values(DefaultCpu())));
INSTANTIATE_TEST_SUITE_P(cuda, UntouchedSlots,
                         testing::Combine(testing::ValuesIn(kFormats),
                                          testing::ValuesIn(CudasUnderTest())));

// What is not a number must not become undefined behaviour.
TEST_P(QuantizationTest, NonFiniteValuesStayWithinTheirSlot) {
  std::vector<float> x(16, 1.0f);
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), HUGE_VALF, -HUGE_VALF}) {
    for (KvFormat format : {KvFormat::kInt8, KvFormat::kInt4, KvFormat::kF16, KvFormat::kBF16}) {
      Slots slots(GetParam(), format, 16);
      const std::vector<uint8_t> neighbour = slots.Packed(4);
      x[7] = bad;
      slots.Write(5, x, x);
      EXPECT_EQ(slots.Packed(4), neighbour);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, QuantizationTest, testing::ValuesIn(ExactDevices()),
                         [](const auto& info) { return info.param.name; });

// Every backend stores the same bytes for the same numbers, so that a lane saved on one goes on
// exactly on another.
using StoredBytes = UntouchedSlots;

TEST_P(StoredBytes, EqualTheCpus) {
  const auto& [format, device] = GetParam();
  for (const int dim : {1, 16, 31, 64, 80, 96, 128, 256}) {
    if (format == KvFormat::kInt4 && dim % 16 != 0) continue;
    Slots slots(device, format, dim);
    Slots on_cpu(DefaultCpu(), format, dim);
    for (int slot = 0; slot < 64; slot += 7) {
      const float size = std::pow(10.0f, static_cast<float>(slot % 5 - 2));
      const auto k = Rounded(device.activations, RandomFloats(dim, 100 + slot, size));
      auto v = Rounded(device.activations, RandomFloats(dim, 200 + slot, size));
      if (slot == 14) v.assign(dim, v[0]);
      slots.Write(slot, k, v);
      on_cpu.Write(slot, k, v);
      ASSERT_EQ(slots.Packed(slot), on_cpu.Packed(slot)) << "head size " << dim;
      EXPECT_FLOAT_EQ(slots.norm(slot), on_cpu.norm(slot));
      EXPECT_NEAR(slots.error(slot), on_cpu.error(slot), 1e-6 * on_cpu.error(slot));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(cuda, StoredBytes,
                         testing::Combine(testing::ValuesIn(kFormats),
                                          testing::ValuesIn(CudasUnderTest())));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(StoredBytes);

}  // namespace
}  // namespace keyline
