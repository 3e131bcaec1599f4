// The devices that the tests of operations run on, and getting floats onto and off them.
//
// A test is parametrised by DevicesUnderTest(): the CPU in every instruction set that this machine
// has. A new backend is one more entry and must pass the same tests.
#pragma once

#include <cstdint>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/weight.h"

namespace keyline {

struct DeviceUnderTest {
  std::string name;  // letters, digits, underscores: part of test names
  std::string isa;   // of the CPU

  std::unique_ptr<Device> Open(int threads = 2) const;
};

std::vector<DeviceUnderTest> DevicesUnderTest();
void PrintTo(const DeviceUnderTest& device, std::ostream* out);

// Reproducible, roughly normal numbers.
std::vector<float> RandomFloats(int64_t n, uint32_t seed, float scale = 1.0f);

// A device, a stream and what was put there; everything lives as long as this.
class Workbench {
 public:
  explicit Workbench(std::unique_ptr<Device> device);

  Stream& stream() { return *stream_; }
  Device& device() { return *device_; }

  TensorView Floats(int64_t rows, int64_t cols, const std::vector<float>& values);
  TensorView Floats(int64_t rows, int64_t cols);  // zeros
  const int32_t* Ints(const std::vector<int32_t>& values);
  // Packed in pieces of odd sizes, as a loader may do.
  Weight Pack(DType dtype, int64_t rows, int64_t cols, const std::vector<float>& values,
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

 private:
  void* Bytes(const void* from, size_t bytes);

  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::vector<Tensor> tensors_;
};

}  // namespace keyline
