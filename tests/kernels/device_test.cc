// Memory, streams and events of every device; one that this build or machine lacks skips with its
// Status. What devices compute is tested operation by operation.
#include "kernels/device/device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/open_cpu.h"
#include "kernels/cuda/open_cuda.h"
#include "kernels/device/host_block.h"
#include "kernels/device/tensor.h"

namespace keyline {
namespace {

struct Opener {
  const char* name;
  std::function<absl::StatusOr<std::unique_ptr<Device>>()> open;
};

class DeviceTest : public ::testing::TestWithParam<Opener> {
 protected:
  void SetUp() override {
    auto device = GetParam().open();
    if (!device.ok()) GTEST_SKIP() << device.status();
    device_ = *std::move(device);
    stream_ = device_->NewStream();
  }

  std::vector<int32_t> Read(const Tensor& tensor) {
    std::vector<int32_t> values(tensor.view().elements(), -1);
    stream_->CopyAsync(values.data(), tensor.view().data, tensor.bytes());
    stream_->Synchronize();
    return values;
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
};

TEST_P(DeviceTest, DescribesItself) {
  EXPECT_FALSE(device_->name().empty());
  EXPECT_FALSE(device_->description().empty());
  const DeviceMemory memory = device_->memory();
  EXPECT_GT(memory.free_bytes, 0u);
  EXPECT_GE(memory.total_bytes, memory.free_bytes);
  EXPECT_EQ(&stream_->device(), device_.get());
}

TEST_P(DeviceTest, MemoryIsZeroedAndAligned) {
  // Again and again, so that memory is reused; large enough not to fit into one page.
  for (int64_t elements : {1, 63, 1000, 1 << 20, 63, 1}) {
    const Tensor tensor = Tensor::Allocate(*device_, DType::kI32, {elements}).value();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.view().data) % 256, 0u);
    EXPECT_EQ(Read(tensor), std::vector<int32_t>(elements, 0)) << elements << " elements";
    const std::vector<int32_t> dirt(elements, 7);
    stream_->CopyAsync(tensor.view().data, dirt.data(), tensor.bytes());
    EXPECT_EQ(Read(tensor), dirt);
  }
}

TEST_P(DeviceTest, MoreMemoryThanThereIsIsAStatus) {
  const size_t bytes = size_t{1} << 50;
  const absl::StatusOr<void*> memory = device_->Allocate(bytes);
  ASSERT_EQ(memory.status().code(), absl::StatusCode::kResourceExhausted) << memory.status();
  EXPECT_NE(memory.status().message().find(std::to_string(bytes)), std::string::npos)
      << memory.status();
  EXPECT_TRUE(Tensor::Allocate(*device_, DType::kI32, {64}).ok()) << "the device still works";
}

TEST_P(DeviceTest, AStreamKeepsItsOrder) {
  std::vector<int32_t> numbers(10007);
  std::iota(numbers.begin(), numbers.end(), 1);
  const int64_t n = static_cast<int64_t>(numbers.size());
  const Tensor a = Tensor::Allocate(*device_, DType::kI32, {n}).value();
  const Tensor b = Tensor::Allocate(*device_, DType::kI32, {n}).value();
  stream_->CopyAsync(a.view().data, numbers.data(), a.bytes());
  stream_->CopyAsync(b.view().data, a.view().data, b.bytes());
  stream_->ZeroAsync(a.view().data, a.bytes());
  EXPECT_EQ(Read(b), numbers);
  EXPECT_EQ(Read(a), std::vector<int32_t>(numbers.size(), 0));
}

TEST_P(DeviceTest, AnEventOrdersTwoStreams) {
  std::vector<int32_t> numbers(1 << 20);
  const int64_t n = static_cast<int64_t>(numbers.size());
  auto other = device_->NewStream();
  auto written = device_->NewEvent();
  const Tensor a = Tensor::Allocate(*device_, DType::kI32, {n}).value();
  const Tensor b = Tensor::Allocate(*device_, DType::kI32, {n}).value();
  for (int round = 1; round <= 3; ++round) {
    std::iota(numbers.begin(), numbers.end(), 1000 * round);
    other->CopyAsync(a.view().data, numbers.data(), a.bytes());
    written->Record(*other);
    written->BlockStream(*stream_);
    stream_->CopyAsync(b.view().data, a.view().data, b.bytes());
    EXPECT_EQ(Read(b), numbers) << "round " << round;
    written->Synchronize();
  }
}

// The host writes a block again and again, each time when it hears that its copy has been done.
TEST_P(DeviceTest, AnEventTellsWhenPinnedMemoryHasBeenCopied) {
  constexpr int64_t kNumbers = 1 << 22;
  const size_t bytes = kNumbers * sizeof(int32_t);
  const HostBlock from = HostBlock::Allocate(*device_, bytes).value();
  const HostBlock to = HostBlock::Allocate(*device_, bytes).value();
  const Tensor there = Tensor::Allocate(*device_, DType::kI32, {kNumbers}).value();
  const std::span numbers(reinterpret_cast<int32_t*>(from.data()), kNumbers);
  const std::span copied(reinterpret_cast<const int32_t*>(to.data()), kNumbers);
  const auto uploaded = device_->NewEvent();
  const auto downloaded = device_->NewEvent();
  EXPECT_TRUE(uploaded->Reached()) << "nothing to wait for";
  for (int round = 1; round <= 4; ++round) {
    std::iota(numbers.begin(), numbers.end(), 1000 * round);
    stream_->CopyPinnedAsync(there.view().data, from.data(), bytes);
    uploaded->Record(*stream_);
    stream_->CopyPinnedAsync(to.data(), there.view().data, bytes);
    downloaded->Record(*stream_);
    if (round % 2 == 0) {
      uploaded->Synchronize();
    } else {
      while (!uploaded->Reached()) {
      }
    }
    std::fill(numbers.begin(), numbers.end(), -1);
    stream_->WaitFor(*downloaded);
    EXPECT_EQ(copied.front(), 1000 * round);
    EXPECT_EQ(copied.back(), 1000 * round + kNumbers - 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, DeviceTest,
                         ::testing::Values(Opener{"cpu",
                                                  [] { return OpenCpuDevice(/*threads=*/1, ""); }},
                                           Opener{"cuda", [] { return OpenCudaDevice(0); }}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(OpenDeviceTest, SaysWhichNamesItKnows) {
  for (const char* name : {"", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "cpu:0"}) {
    EXPECT_EQ(OpenDevice(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

TEST(OpenDeviceTest, RefusesAGpuThatCannotCompute) {
  // Absent from the build or the machine, or there without kernels; never a crash later.
  const absl::Status status = OpenDevice("cuda:0").status();
  if (OpenCudaDevice(0).ok()) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
  } else {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  }
  EXPECT_EQ(OpenDevice("cuda:4000").status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace keyline
