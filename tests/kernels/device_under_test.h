// The devices that the tests of operations run on, and getting floats onto and off them.
//
// A test is parametrised by DevicesUnderTest(): the CPU in every instruction set that this machine
// has, and CUDA, where the build has it, with each type of activations. One that cannot be opened
// skips its tests (SKIP_UNLESS_OPENS). A new backend is one more entry and must pass the same
// tests.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/weight.h"

namespace keyline {

struct DeviceUnderTest {
  std::string name;  // letters, digits, underscores: part of test names
  std::string isa;   // of the CPU
  DType activations = DType::kF32;
  bool cuda = false;
  bool deterministic = false;

  absl::StatusOr<std::unique_ptr<Device>> TryOpen(int threads = 2) const;
  // Aborts the test program if the device cannot be opened.
  std::unique_ptr<Device> Open(int threads = 2) const;
  // Most that rounding a number to the activations' type changes it by, relative to it.
  double half_ulp() const;
};

std::vector<DeviceUnderTest> DevicesUnderTest();
std::vector<DeviceUnderTest> CpusUnderTest();
std::vector<DeviceUnderTest> CudasUnderTest();  // cuda_devices.cc; none where the build has no CUDA
// The CPU as it opens by itself.
DeviceUnderTest DefaultCpu();
// That CPU and the other devices whose activations are float32: for tests of exact choices.
std::vector<DeviceUnderTest> ExactDevices();
void PrintTo(const DeviceUnderTest& device, std::ostream* out);

// Reproducible, roughly normal numbers.
std::vector<float> RandomFloats(int64_t n, uint32_t seed, float scale = 1.0f);

// `values` as memory of `type` (f32, bf16 or f16), and back.
std::vector<uint8_t> Encoded(DType type, const std::vector<float>& values);
std::vector<float> Decoded(DType type, const std::vector<uint8_t>& bytes);

// What `values` become when they are put on a device as `type`.
std::vector<float> Rounded(DType type, const std::vector<float>& values);

// A device, a stream and what was put there; everything lives as long as this.
class Workbench {
 public:
  explicit Workbench(const DeviceUnderTest& device, int threads = 2);

  Stream& stream() { return *stream_; }
  Device& device() { return *device_; }

  // Activations, in the device's type.
  TensorView Floats(int64_t rows, int64_t cols, const std::vector<float>& values);
  TensorView Floats(int64_t rows, int64_t cols);  // zeros
  // float32 on every device.
  TensorView Logits(int64_t rows, int64_t cols, const std::vector<float>& values);
  const int32_t* Ints(const std::vector<int32_t>& values);
  // Packed in pieces of odd sizes, as a loader may do.
  Weight Pack(DType dtype, int64_t rows, int64_t cols, const std::vector<float>& values,
              const std::vector<float>& bias = {});
  // The same of blocks as files have them (kernels/ops/weight_blocks.h).
  Weight PackBlocks(DType dtype, int64_t rows, int64_t cols, const std::vector<uint8_t>& blocks,
                    const std::vector<float>& bias = {});
  template <class T>
  T* Array(const std::vector<T>& values) {
    return static_cast<T*>(Bytes(values.data(), values.size() * sizeof(T)));
  }

  std::vector<float> Read(TensorView view);
  template <class T>
  std::vector<T> Read(const T* data, size_t count) {
    std::vector<T> out(count);
    stream_->CopyAsync(out.data(), data, count * sizeof(T));
    stream_->Synchronize();
    return out;
  }
  template <class T>
  void Write(T* data, const std::vector<T>& values) {
    stream_->CopyAsync(data, values.data(), values.size() * sizeof(T));
    stream_->Synchronize();
  }

 private:
  TensorView Upload(DType type, int64_t rows, int64_t cols, const std::vector<float>& values);
  void* Bytes(const void* from, size_t bytes);
  // Packed by `pack(weight, first, count)` in pieces of odd sizes.
  Weight PackPieces(DType dtype, int64_t rows, int64_t cols, const std::vector<float>& bias,
                    const std::function<void(const Weight&, int64_t, int64_t)>& pack);

  DType activations_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::vector<Tensor> tensors_;
};

// Skips the test, with the Status, where the device cannot be opened: call it in SetUp.
#define SKIP_UNLESS_OPENS(device_under_test)                                \
  do {                                                                      \
    if (const auto opened = (device_under_test).TryOpen(1); !opened.ok()) { \
      GTEST_SKIP() << opened.status();                                      \
    }                                                                       \
  } while (false)

}  // namespace keyline
