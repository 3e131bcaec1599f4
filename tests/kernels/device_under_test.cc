#include "tests/kernels/device_under_test.h"

#include <glog/logging.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "kernels/cpu/isa/kernel_set.h"
#include "kernels/cpu/open_cpu.h"
#include "kernels/ops/ops.h"
#include "kernels/ops/weight_blocks.h"

namespace keyline {
namespace {

// Numbers of 2 bytes, written and read with arithmetic, sharing nothing with the kernels.
uint16_t ToBits(DType type, float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (type == DType::kBF16) {
    if (std::isnan(x)) return sign | 0x7fc0;
    const uint32_t below = bits & 0xffff;
    const uint32_t half = bits >> 16;
    return static_cast<uint16_t>(half + (below > 0x8000 || (below == 0x8000 && half % 2 == 1)));
  }
  CHECK(type == DType::kF16) << Name(type);
  if (std::isnan(x)) return sign | 0x7e00;
  const float size = std::fabs(x);
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size == 0) return sign;
  int exponent = 0;
  std::frexp(size, &exponent);
  exponent = std::max(exponent, -13);  // below, multiples of 2^-24
  const auto units = static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 11 - exponent)));
  // A carry into the exponent gives the next power of two.
  return static_cast<uint16_t>(sign | (((exponent + 13) << 10) + units));
}

float FromBits(DType type, uint16_t x) {
  if (type == DType::kBF16) return std::bit_cast<float>(uint32_t{x} << 16);
  const int exponent = x >> 10 & 31;
  const int fraction = x & 1023;
  const double size = exponent == 31  ? (fraction == 0 ? HUGE_VAL : NAN)
                      : exponent == 0 ? std::ldexp(fraction, -24)
                                      : std::ldexp(1024 + fraction, exponent - 25);
  return static_cast<float>(x & 0x8000 ? -size : size);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> DeviceUnderTest::TryOpen(int threads) const {
  return cuda ? OpenDevice("cuda:0", {.deterministic = deterministic})
              : OpenCpuDevice(threads, isa);
}

std::unique_ptr<Device> DeviceUnderTest::Open(int threads) const {
  absl::StatusOr<std::unique_ptr<Device>> device = TryOpen(threads);
  CHECK(device.ok()) << device.status();
  return *std::move(device);
}

double DeviceUnderTest::half_ulp() const {
  return activations == DType::kBF16  ? std::ldexp(1.0, -8)
         : activations == DType::kF16 ? std::ldexp(1.0, -11)
                                      : std::ldexp(1.0, -24);
}

std::vector<DeviceUnderTest> CpusUnderTest() {
  std::vector<DeviceUnderTest> devices;
  for (const KernelSet* const* set = KernelSets(); *set != nullptr; ++set) {
    devices.push_back({std::string("cpu_") + (*set)->name, (*set)->name});
  }
  return devices;
}

std::vector<DeviceUnderTest> DevicesUnderTest() {
  std::vector<DeviceUnderTest> devices = CpusUnderTest();
  for (const DeviceUnderTest& cuda : CudasUnderTest()) devices.push_back(cuda);
  return devices;
}

DeviceUnderTest DefaultCpu() { return {"cpu", ""}; }

std::vector<DeviceUnderTest> ExactDevices() {
  std::vector<DeviceUnderTest> devices = {DefaultCpu()};
  for (const DeviceUnderTest& cuda : CudasUnderTest()) {
    if (cuda.activations == DType::kF32) devices.push_back(cuda);
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

std::vector<uint8_t> Encoded(DType type, const std::vector<float>& values) {
  std::vector<uint8_t> bytes(BytesOf(type, static_cast<int64_t>(values.size())));
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == DType::kF32) {
      std::memcpy(&bytes[i * sizeof(float)], &values[i], sizeof(float));
    } else {
      const uint16_t bits = ToBits(type, values[i]);
      std::memcpy(&bytes[i * sizeof(bits)], &bits, sizeof(bits));
    }
  }
  return bytes;
}

std::vector<float> Decoded(DType type, const std::vector<uint8_t>& bytes) {
  std::vector<float> values(bytes.size() / BytesOf(type, 1));
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == DType::kF32) {
      std::memcpy(&values[i], &bytes[i * sizeof(float)], sizeof(float));
    } else {
      uint16_t bits;
      std::memcpy(&bits, &bytes[i * sizeof(bits)], sizeof(bits));
      values[i] = FromBits(type, bits);
    }
  }
  return values;
}

std::vector<float> Rounded(DType type, const std::vector<float>& values) {
  return type == DType::kF32 ? values : Decoded(type, Encoded(type, values));
}

Workbench::Workbench(const DeviceUnderTest& device, int threads)
    : activations_(device.activations),
      device_(device.Open(threads)),
      stream_(device_->NewStream()) {}

void* Workbench::Bytes(const void* from, size_t bytes) {
  absl::StatusOr<Tensor> tensor =
      Tensor::Allocate(*device_, DType::kU8, {static_cast<int64_t>(bytes)});
  CHECK(tensor.ok()) << tensor.status();
  stream_->CopyAsync(tensor->view().data, from, bytes);
  stream_->Synchronize();
  tensors_.push_back(*std::move(tensor));
  return tensors_.back().view().data;
}

TensorView Workbench::Upload(DType type, int64_t rows, int64_t cols,
                             const std::vector<float>& values) {
  CHECK_EQ(static_cast<int64_t>(values.size()), rows * cols);
  return MakeView(Array(Encoded(type, values)), type, {rows, cols});
}

TensorView Workbench::Floats(int64_t rows, int64_t cols, const std::vector<float>& values) {
  return Upload(activations_, rows, cols, values);
}

TensorView Workbench::Floats(int64_t rows, int64_t cols) {
  return Floats(rows, cols, std::vector<float>(rows * cols, 0.0f));
}

TensorView Workbench::Logits(int64_t rows, int64_t cols, const std::vector<float>& values) {
  return Upload(DType::kF32, rows, cols, values);
}

const int32_t* Workbench::Ints(const std::vector<int32_t>& values) { return Array(values); }

Weight Workbench::Pack(DType dtype, int64_t rows, int64_t cols, const std::vector<float>& values,
                       const std::vector<float>& bias) {
  return PackPieces(dtype, rows, cols, bias, [&](const Weight& w, int64_t first, int64_t count) {
    ops::PackRows(*device_, w, first, count, values.data() + first * cols);
  });
}

Weight Workbench::PackBlocks(DType dtype, int64_t rows, int64_t cols,
                             const std::vector<uint8_t>& blocks, const std::vector<float>& bias) {
  const int64_t row_bytes = BlockRowBytes(dtype, cols);
  CHECK_EQ(static_cast<int64_t>(blocks.size()), rows * row_bytes);
  return PackPieces(dtype, rows, cols, bias, [&](const Weight& w, int64_t first, int64_t count) {
    ops::PackBlocks(*device_, w, first, count,
                    reinterpret_cast<const std::byte*>(blocks.data()) + first * row_bytes);
  });
}

Weight Workbench::PackPieces(DType dtype, int64_t rows, int64_t cols,
                             const std::vector<float>& bias,
                             const std::function<void(const Weight&, int64_t, int64_t)>& pack) {
  // Filled with NaN, so that a pad that packing left alone shows.
  std::vector<uint8_t> packed(ops::PackedBytes(*device_, dtype, rows, cols), 0xff);
  Weight weight = {packed.data(), dtype, rows, cols, nullptr};
  for (int64_t first = 0; first < rows;) {
    const int64_t count = std::min<int64_t>(rows - first, first % 3 == 0 ? 37 : 5);
    pack(weight, first, count);
    first += count;
  }
  weight.data = Array(packed);
  if (!bias.empty()) weight.bias = Array(bias);
  return weight;
}

std::vector<float> Workbench::Read(TensorView view) {
  std::vector<float> out;
  for (int64_t r = 0; r < view.rows(); ++r) {
    const auto* data = static_cast<const uint8_t*>(view.Rows(r, 1).data);
    const std::vector<float> row =
        Decoded(view.dtype, Read(data, BytesOf(view.dtype, view.cols())));
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

}  // namespace keyline
