#include "runtime/files/weight_source.h"

#include <glog/logging.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/gguf/gguf_blocks.h"
#include "runtime/files/input_file.h"

namespace keyline {
namespace {

// Bytes fetched at a time: few enough to still be in the cache when they are converted.
constexpr int64_t kPieceBytes = 256 << 10;

// Bytes [first, first + count) of the tensor: where they are in memory, or copied to `buffer`.
absl::StatusOr<const std::byte*> Fetch(const SourceTensor& tensor, int64_t first, int64_t count,
                                       std::vector<std::byte>& buffer) {
  if (tensor.file == nullptr) return tensor.data + first;
  buffer.resize(static_cast<size_t>(count));
  RETURN_IF_ERROR(tensor.file->Read(tensor.file_offset + static_cast<uint64_t>(first), buffer));
  return buffer.data();
}

}  // namespace

int64_t SourceTensor::rows() const {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return rows;
}

absl::Status ReadRows(const SourceTensor& tensor, int64_t first, int64_t count, float* out) {
  const int64_t rows = tensor.rows();
  const int64_t cols = tensor.cols();
  CHECK(first >= 0 && count >= 0 && first <= rows - count)
      << "rows " << first << " + " << count << " of " << rows;
  if (!CanDequantize(tensor.dtype)) {
    return absl::UnimplementedError(
        absl::StrCat(tensor.file != nullptr ? tensor.file->path() : "tensor", ": element type ",
                     std::string(Name(tensor.dtype)), " cannot be read as float32"));
  }
  const auto row_bytes = static_cast<int64_t>(BytesOf(tensor.dtype, cols));
  const bool interleaved = tensor.interleaved_heads > 0;
  int64_t piece_rows = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(1, row_bytes));
  if (interleaved) {
    CHECK_EQ(rows % (2 * tensor.interleaved_heads), 0);
    piece_rows = rows / tensor.interleaved_heads;  // rows are scattered over their own head only
  }
  std::vector<std::byte> buffer;
  for (int64_t row = first; row < first + count;) {
    const int64_t begin = interleaved ? row / piece_rows * piece_rows : row;
    const int64_t end = std::min(begin + piece_rows, interleaved ? rows : first + count);
    ASSIGN_OR_RETURN(const std::byte* stored,
                     Fetch(tensor, begin * row_bytes, (end - begin) * row_bytes, buffer));
    if (!interleaved) {
      DequantizeRow(tensor.dtype, stored, (end - begin) * cols, out + (row - first) * cols);
      row = end;
      continue;
    }
    for (; row < std::min(end, first + count); ++row) {
      const int64_t half = piece_rows / 2;
      const int64_t stored_row = 2 * ((row - begin) % half) + (row - begin) / half;
      DequantizeRow(tensor.dtype, stored + stored_row * row_bytes, cols,
                    out + (row - first) * cols);
    }
  }
  return absl::OkStatus();
}

absl::Status ReadBytes(const SourceTensor& tensor, std::byte* out) {
  if (tensor.file != nullptr) return tensor.file->Read(tensor.file_offset, {out, tensor.bytes});
  std::copy_n(tensor.data, tensor.bytes, out);
  return absl::OkStatus();
}

}  // namespace keyline
