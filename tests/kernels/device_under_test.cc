#include "tests/kernels/device_under_test.h"

#include <glog/logging.h>

#include <algorithm>
#include <random>

#include "kernels/cpu/isa/kernel_set.h"
#include "kernels/cpu/open_cpu.h"
#include "kernels/ops/ops.h"

namespace keyline {

std::unique_ptr<Device> DeviceUnderTest::Open(int threads) const {
  absl::StatusOr<std::unique_ptr<Device>> device = OpenCpuDevice(threads, isa);
  CHECK(device.ok()) << device.status();
  return *std::move(device);
}

std::vector<DeviceUnderTest> DevicesUnderTest() {
  std::vector<DeviceUnderTest> devices;
  for (const KernelSet* const* set = KernelSets(); *set != nullptr; ++set) {
    devices.push_back({std::string("cpu_") + (*set)->name, (*set)->name});
  }
  return devices;
}

void PrintTo(const DeviceUnderTest& device, std::ostream* out) { *out << device.name; }

std::vector<float> RandomFloats(int64_t n, uint32_t seed, float scale) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(n);
  for (float& v : values) v = normal(random);
  return values;
}

Workbench::Workbench(std::unique_ptr<Device> device)
    : device_(std::move(device)), stream_(device_->NewStream()) {}

void* Workbench::Bytes(const void* from, size_t bytes) {
  absl::StatusOr<Tensor> tensor =
      Tensor::Allocate(*device_, DType::kU8, {static_cast<int64_t>(bytes)});
  CHECK(tensor.ok()) << tensor.status();
  stream_->CopyAsync(tensor->view().data, from, bytes);
  stream_->Synchronize();
  tensors_.push_back(*std::move(tensor));
  return tensors_.back().view().data;
}

TensorView Workbench::Floats(int64_t rows, int64_t cols, const std::vector<float>& values) {
  CHECK_EQ(static_cast<int64_t>(values.size()), rows * cols);
  return MakeView(Array(values), DType::kF32, {rows, cols});
}

TensorView Workbench::Floats(int64_t rows, int64_t cols) {
  return Floats(rows, cols, std::vector<float>(rows * cols, 0.0f));
}

const int32_t* Workbench::Ints(const std::vector<int32_t>& values) { return Array(values); }

Weight Workbench::Pack(DType dtype, int64_t rows, int64_t cols, const std::vector<float>& values,
                       const std::vector<float>& bias) {
  // Filled with NaN, so that a pad that packing left alone shows.
  std::vector<uint8_t> packed(ops::PackedBytes(*device_, dtype, rows, cols), 0xff);
  Weight weight = {packed.data(), dtype, rows, cols, nullptr};
  for (int64_t first = 0; first < rows;) {
    const int64_t count = std::min<int64_t>(rows - first, first % 3 == 0 ? 37 : 5);
    ops::PackRows(*device_, weight, first, count, values.data() + first * cols);
    first += count;
  }
  weight.data = Array(packed);
  if (!bias.empty()) weight.bias = Array(bias);
  return weight;
}

std::vector<float> Workbench::Read(TensorView view) {
  std::vector<float> out;
  for (int64_t r = 0; r < view.rows(); ++r) {
    const std::vector<float> row = Read(view.row<float>(r), view.cols());
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

}  // namespace keyline
