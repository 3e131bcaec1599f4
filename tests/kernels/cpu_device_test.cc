// What is particular to the CPU as a device; what all devices share is in device_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>

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

}  // namespace
}  // namespace keyline
