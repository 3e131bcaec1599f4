// What is particular to the CPU as a device; what all devices share is in device_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cpu/huge_pages.h"
#include "kernels/cpu/open_cpu.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"

namespace keyline {
namespace {

using testing::HasSubstr;

TEST(CpuDeviceTest, OpensTheCpu) {
  const auto device = OpenDevice("cpu", {.threads = 3});
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ((*device)->name(), "cpu");
  EXPECT_THAT((*device)->description(), HasSubstr("3 threads"));
  EXPECT_TRUE((*device)->memory_is_host());
  EXPECT_EQ((*device)->ActivationType(DType::kBF16), DType::kF32);
}

TEST(CpuDeviceTest, NamesTheInstructionSetsItHas) {
  const auto device = OpenCpuDevice(1, "mmx");
  EXPECT_EQ(device.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(device.status().message(), HasSubstr("scalar"));
  EXPECT_EQ(OpenCpuDevice(-1, "").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CpuDeviceTest, LargeMemoryOfTheCpuIsZeroedToo) {  // mapped, not from the heap
  const auto device = OpenDevice("cpu", {.threads = 1});
  ASSERT_TRUE(device.ok());
  for (int round = 0; round < 2; ++round) {
    const auto tensor = Tensor::Allocate(**device, DType::kU8, {(int64_t{9} << 20) + 1});
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    auto* data = tensor->view().as<uint8_t>();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % (2 << 20), 0u);
    for (int64_t i = 0; i < tensor->view().elements(); i += 101) {
      ASSERT_EQ(data[i], 0);
      data[i] = 1;
    }
  }
}

// Blocks that share mappings: more than one mapping holds, some freed between.
TEST(HugePagesTest, BlocksAreZeroedAndTheirOwn) {
  constexpr size_t kBytes = (size_t{3} << 20) + 5;
  HugePages pages;
  std::vector<uint8_t*> blocks;
  for (int i = 0; i < 30; ++i) {
    auto* const block = static_cast<uint8_t*>(pages.Allocate(kBytes));
    ASSERT_NE(block, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % 4096, 0u);
    EXPECT_TRUE(std::all_of(block, block + kBytes, [](uint8_t b) { return b == 0; })) << i;
    std::fill_n(block, kBytes, static_cast<uint8_t>(i + 1));
    blocks.push_back(block);
    if (i % 3 != 2) continue;
    pages.Free(blocks.front(), kBytes);
    blocks.erase(blocks.begin());
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto expected = static_cast<uint8_t>(30 - blocks.size() + i + 1);
    EXPECT_TRUE(
        std::all_of(blocks[i], blocks[i] + kBytes, [&](uint8_t b) { return b == expected; }));
    pages.Free(blocks[i], kBytes);
  }
}

}  // namespace
}  // namespace keyline
