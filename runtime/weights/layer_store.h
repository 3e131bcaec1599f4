// LayerStore: puts one layer's weights within reach, resident or just in time. The offload seam:
// stages and families of models do not know whether weights stay on the device.
//
// LayerSpec says which tensors of a checkpoint a layer is made of; families write it. One layer's
// weights are one contiguous blob on the device.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/weight.h"

namespace keyline {

// Rows of one checkpoint tensor that become the next rows of a packed matrix.
struct RowBlock {
  std::string tensor;
  int64_t rows = 0;       // taken
  int64_t first_row = 0;  // from here on (checkpoints that already fuse q, k, v)
  std::string bias;       // tensor with one number a row, or ""
};

struct MatrixSpec {
  std::vector<RowBlock> blocks;  // stacked from the top
  int64_t cols = 0;
  std::optional<DType> format = std::nullopt;  // on the device, where it is not the layer's
  int64_t rows() const;
  bool has_bias() const;
};

// A float32 vector; `add` is added to each element at load (Gemma's norms store w - 1).
struct VectorSpec {
  std::string tensor;
  int64_t size = 0;
  float add = 0;
};

struct LayerSpec {
  std::vector<MatrixSpec> matrices;
  std::vector<VectorSpec> vectors;
};

// The same, within reach of the device, in the order of the spec.
struct LayerWeights {
  std::span<const Weight> matrices;
  std::span<const TensorView> vectors;  // float32 [size]
};

// Where a layer's parts lie in its blob. Pure arithmetic: `keyline plan` uses it without a file.
struct BlobLayout {
  struct Part {
    size_t offset = 0;
    size_t bytes = 0;
  };
  std::vector<Part> matrices;
  std::vector<Part> biases;  // bytes == 0 where a matrix has none
  std::vector<Part> vectors;
  size_t bytes = 0;
};
// `dtype`: of matrices that have no format of their own.
BlobLayout LayOut(const Device& device, const LayerSpec& spec, DType dtype);

class LayerStore {
 public:
  virtual ~LayerStore() = default;
  // Weights of `layer` (global index), usable by work enqueued on `stream` until Release.
  virtual LayerWeights Acquire(Stream& stream, int layer) = 0;
  virtual void Release(Stream& stream, int layer) = 0;
  virtual size_t device_bytes() const = 0;
  // Bytes copied to the device since the start, so that layers could run.
  virtual int64_t streamed_bytes() const { return 0; }
  // Layers that host memory had no room for: each of their copies is made from the checkpoint.
  virtual int unpinned_layers() const { return 0; }
};

}  // namespace keyline
