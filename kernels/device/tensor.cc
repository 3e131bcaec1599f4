#include "kernels/device/tensor.h"

#include <glog/logging.h>

#include <utility>

#include "kernels/device/device.h"

namespace keyline {

int64_t TensorView::elements() const {
  if (rank == 0) return 0;
  int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= shape[i];
  return n;
}

bool TensorView::contiguous() const {
  int64_t expected = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

TensorView TensorView::Rows(int64_t first, int64_t count) const {
  CHECK_GE(rank, 1);
  CHECK(first >= 0 && count >= 0 && first + count <= shape[0])
      << "rows [" << first << ", " << first + count << ") of " << shape[0];
  TensorView part = *this;
  part.data = static_cast<std::byte*>(data) + BytesOf(dtype, first * strides[0]);
  part.shape[0] = count;
  return part;
}

TensorView TensorView::Columns(int64_t first, int64_t count) const {
  CHECK_GE(rank, 1);
  CHECK(first >= 0 && count >= 0 && first + count <= cols())
      << "columns [" << first << ", " << first + count << ") of " << cols();
  TensorView part = *this;
  part.data = static_cast<std::byte*>(data) + BytesOf(dtype, first);
  part.shape[rank - 1] = count;
  return part;
}

TensorView MakeView(void* data, DType dtype, std::initializer_list<int64_t> shape) {
  CHECK_LE(shape.size(), 4u);
  TensorView view;
  view.data = data;
  view.dtype = dtype;
  view.rank = static_cast<int>(shape.size());
  int i = 0;
  for (int64_t n : shape) view.shape[i++] = n;
  int64_t stride = 1;
  for (int d = view.rank - 1; d >= 0; --d) {
    view.strides[d] = stride;
    stride *= view.shape[d];
  }
  return view;
}

absl::StatusOr<Tensor> Tensor::Allocate(Device& device, DType dtype,
                                        std::initializer_list<int64_t> shape) {
  TensorView view = MakeView(nullptr, dtype, shape);
  absl::StatusOr<void*> data = device.Allocate(view.bytes());
  if (!data.ok()) return data.status();
  view.data = *data;
  Tensor tensor;
  tensor.device_ = &device;
  tensor.view_ = view;
  return tensor;
}

Tensor::Tensor(Tensor&& other) noexcept
    : device_(std::exchange(other.device_, nullptr)), view_(std::exchange(other.view_, {})) {}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  if (this != &other) {
    if (device_ != nullptr) device_->Free(view_.data);
    device_ = std::exchange(other.device_, nullptr);
    view_ = std::exchange(other.view_, {});
  }
  return *this;
}

Tensor::~Tensor() {
  if (device_ != nullptr) device_->Free(view_.data);
}

}  // namespace keyline
