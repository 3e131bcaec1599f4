#include "runtime/weights/layer_blob.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/device/status_macros.h"
#include "kernels/ops/ops.h"

namespace keyline {
namespace {

// Source rows converted to float32 at a time: bounds the memory of a load to a few MiB a
// thread.
constexpr int64_t kRowsAtOnce = 256;

absl::StatusOr<SourceTensor> FindMatrix(const WeightSource& source, const RowBlock& block,
                                        int64_t cols) {
  ASSIGN_OR_RETURN(SourceTensor tensor, source.Find(block.tensor));
  if (tensor.shape.size() != 2 || tensor.cols() != cols ||
      tensor.rows() < block.first_row + block.rows) {
    return absl::InvalidArgumentError(
        absl::StrCat(source.path(), ": tensor '", block.tensor, "' has shape [",
                     absl::StrJoin(tensor.shape, ", "), "], the model's configuration needs [",
                     block.first_row + block.rows, ", ", cols, "]"));
  }
  return tensor;
}

absl::Status ReadVector(const WeightSource& source, const std::string& name, int64_t first,
                        int64_t size, float* out) {
  ASSIGN_OR_RETURN(SourceTensor tensor, source.Find(name));
  int64_t elements = 1;
  for (int64_t n : tensor.shape) elements *= n;
  if (elements < first + size || (first == 0 && tensor.shape.size() > 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        source.path(), ": tensor '", name, "' has shape [", absl::StrJoin(tensor.shape, ", "),
        "], the model's configuration needs [", first + size, "]"));
  }
  // A vector is a matrix of one row, or with interleaved heads a column of rows.
  if (tensor.interleaved_heads > 0) {
    tensor.shape = {elements, 1};
    return ReadRows(tensor, first, size, out);
  }
  tensor.shape = {1, elements};
  std::vector<float> all(elements);
  RETURN_IF_ERROR(ReadRows(tensor, 0, 1, all.data()));
  std::copy_n(all.begin() + first, size, out);
  return absl::OkStatus();
}

// Rows of one checkpoint tensor on their way into a packed matrix.
struct Piece {
  SourceTensor tensor;
  int64_t from = 0;
  int64_t count = 0;
  Weight weight;  // data on the host
  int64_t to = 0;
};

// Threads of a load. Converting numbers is what takes the time, and a GPU's rank has cores to
// spare.
constexpr unsigned kMostThreads = 16;

// Blocks that the file has already are packed as they are; all else by way of float32.
absl::Status ReadAndPack(const Device& device, const Piece& piece, std::vector<float>& rows,
                         std::vector<std::byte>& blocks) {
  if (HasBlocksOf(piece.tensor.dtype, piece.weight.dtype)) {
    blocks.resize(BytesOf(piece.weight.dtype, piece.count * piece.weight.cols));
    RETURN_IF_ERROR(
        ReadBlockRows(piece.tensor, piece.weight.dtype, piece.from, piece.count, blocks.data()));
    ops::PackBlocks(device, piece.weight, piece.to, piece.count, blocks.data());
    return absl::OkStatus();
  }
  rows.resize(std::max<size_t>(rows.size(), piece.count * piece.weight.cols));
  RETURN_IF_ERROR(ReadRows(piece.tensor, piece.from, piece.count, rows.data()));
  ops::PackRows(device, piece.weight, piece.to, piece.count, rows.data());
  return absl::OkStatus();
}

// All pieces, by as many threads as there are cores. The first error in the order of the pieces.
absl::Status ReadAndPack(const Device& device, const std::vector<Piece>& pieces) {
  std::vector<absl::Status> results(pieces.size());
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    std::vector<float> rows;
    std::vector<std::byte> blocks;
    for (size_t i = next++; i < pieces.size(); i = next++) {
      results[i] = ReadAndPack(device, pieces[i], rows, blocks);
      if (!results[i].ok()) return;
    }
  };
  const size_t threads = std::min<size_t>(
      pieces.size(), std::clamp(std::thread::hardware_concurrency(), 1u, kMostThreads));
  std::vector<std::thread> others;
  for (size_t t = 1; t < threads; ++t) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
  for (const absl::Status& result : results) RETURN_IF_ERROR(result);
  return absl::OkStatus();
}

}  // namespace

absl::Status PackLayer(const Device& device, const WeightSource& source, const LayerSpec& spec,
                       DType dtype, std::byte* host) {
  const BlobLayout layout = LayOut(device, spec, dtype);
  std::vector<Piece> pieces;
  for (size_t m = 0; m < spec.matrices.size(); ++m) {
    const MatrixSpec& matrix = spec.matrices[m];
    const Weight weight{.data = host + layout.matrices[m].offset,
                        .dtype = matrix.format.value_or(dtype),
                        .rows = matrix.rows(),
                        .cols = matrix.cols};
    int64_t at = 0;
    for (const RowBlock& block : matrix.blocks) {
      ASSIGN_OR_RETURN(SourceTensor tensor, FindMatrix(source, block, matrix.cols));
      for (int64_t done = 0; done < block.rows; done += kRowsAtOnce) {
        pieces.push_back({.tensor = tensor,
                          .from = block.first_row + done,
                          .count = std::min(kRowsAtOnce, block.rows - done),
                          .weight = weight,
                          .to = at + done});
      }
      if (!block.bias.empty()) {
        auto* bias = reinterpret_cast<float*>(host + layout.biases[m].offset);
        RETURN_IF_ERROR(ReadVector(source, block.bias, block.first_row, block.rows, bias + at));
      }
      at += block.rows;
    }
  }
  RETURN_IF_ERROR(ReadAndPack(device, pieces));
  for (size_t v = 0; v < spec.vectors.size(); ++v) {
    const VectorSpec& vector = spec.vectors[v];
    auto* values = reinterpret_cast<float*>(host + layout.vectors[v].offset);
    RETURN_IF_ERROR(ReadVector(source, vector.tensor, 0, vector.size, values));
    for (int64_t i = 0; i < vector.size; ++i) values[i] += vector.add;
  }
  return absl::OkStatus();
}

LayerViews::LayerViews(const Device& device, const LayerSpec& spec, DType dtype, std::byte* base) {
  const BlobLayout layout = LayOut(device, spec, dtype);
  for (size_t m = 0; m < spec.matrices.size(); ++m) {
    const MatrixSpec& matrix = spec.matrices[m];
    Weight weight{.data = base + layout.matrices[m].offset,
                  .dtype = matrix.format.value_or(dtype),
                  .rows = matrix.rows(),
                  .cols = matrix.cols};
    if (matrix.has_bias()) {
      weight.bias = reinterpret_cast<const float*>(base + layout.biases[m].offset);
    }
    matrices_.push_back(weight);
  }
  for (size_t v = 0; v < spec.vectors.size(); ++v) {
    vectors_.push_back(
        MakeView(base + layout.vectors[v].offset, DType::kF32, {spec.vectors[v].size}));
  }
}

LayerViews LayerViews::Moved(const std::byte* from, std::byte* to) const {
  const auto moved = [&](const void* at) {
    return to + (static_cast<const std::byte*>(at) - from);
  };
  LayerViews views = *this;
  for (Weight& matrix : views.matrices_) {
    matrix.data = moved(matrix.data);
    if (matrix.bias != nullptr) matrix.bias = reinterpret_cast<const float*>(moved(matrix.bias));
  }
  for (TensorView& vector : views.vectors_) vector.data = moved(vector.data);
  return views;
}

absl::StatusOr<LayerBlob> LayerBlob::Load(Device& device, Stream& stream,
                                          const WeightSource& source, const LayerSpec& spec,
                                          DType dtype) {
  const size_t bytes = LayOut(device, spec, dtype).bytes;
  LayerBlob blob;
  ASSIGN_OR_RETURN(blob.memory_,
                   Tensor::Allocate(device, DType::kU8, {static_cast<int64_t>(bytes)}));
  auto* const on_device = blob.memory_.view().as<std::byte>();
  blob.views_ = LayerViews(device, spec, dtype, on_device);
  // Packed on the host, in place where the device's memory is the host's.
  if (device.memory_is_host()) {
    RETURN_IF_ERROR(PackLayer(device, source, spec, dtype, on_device));
    return blob;
  }
  const auto staging = std::make_unique<std::byte[]>(bytes);
  RETURN_IF_ERROR(PackLayer(device, source, spec, dtype, staging.get()));
  stream.CopyAsync(on_device, staging.get(), bytes);
  stream.Synchronize();
  return blob;
}

absl::StatusOr<LayerBlob> LayerBlob::Copy(Device& device, Stream& stream, const LayerBlob& from) {
  LayerBlob blob;
  const TensorView source = from.memory_.view();
  ASSIGN_OR_RETURN(blob.memory_, Tensor::Allocate(device, DType::kU8, {source.shape[0]}));
  stream.CopyAsync(blob.memory_.view().data, source.data, source.bytes());
  blob.views_ = from.views_.Moved(source.as<std::byte>(), blob.memory_.view().as<std::byte>());
  return blob;
}

}  // namespace keyline
