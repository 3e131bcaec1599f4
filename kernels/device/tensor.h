// TensorView: a typed, strided window on device memory, passed by value. Tensor: owns such memory.
//
// Neither knows how to compute: kernels/ops/ops.h does. Views do not keep memory alive.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>

#include "absl/status/statusor.h"
#include "kernels/device/dtype.h"

namespace keyline {

class Device;

// Up to four dimensions; strides in elements; the last dimension is contiguous unless stated.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, 4> shape{};
  std::array<int64_t, 4> strides{};

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  // First element of row i of the first dimension. REQUIRES: a plain (not block) type of size T.
  template <class T>
  T* row(int64_t i) const {
    return static_cast<T*>(data) + i * strides[0];
  }
  bool empty() const { return data == nullptr; }
  int64_t rows() const { return rank == 0 ? 0 : shape[0]; }
  int64_t cols() const { return rank == 0 ? 0 : shape[rank - 1]; }
  int64_t elements() const;
  bool contiguous() const;
  size_t bytes() const { return BytesOf(dtype, elements()); }

  // Rows [first, first + count) of the first dimension.
  TensorView Rows(int64_t first, int64_t count) const;
  // Columns [first, first + count) of the last dimension.
  TensorView Columns(int64_t first, int64_t count) const;
};

// A contiguous view of `data`.
TensorView MakeView(void* data, DType dtype, std::initializer_list<int64_t> shape);

// Owns zeroed memory of one device. Movable, not copyable. The device must outlive it.
class Tensor {
 public:
  Tensor() = default;
  // RESOURCE_EXHAUSTED, with the bytes asked for, where the device has no room.
  static absl::StatusOr<Tensor> Allocate(Device& device, DType dtype,
                                         std::initializer_list<int64_t> shape);
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(Tensor&& other) noexcept;
  ~Tensor();

  const TensorView& view() const { return view_; }
  operator TensorView() const { return view_; }  // NOLINT(google-explicit-constructor)
  size_t bytes() const { return view_.bytes(); }

 private:
  Device* device_ = nullptr;
  TensorView view_;
};

}  // namespace keyline
