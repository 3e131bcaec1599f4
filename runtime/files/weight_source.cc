#include "runtime/files/weight_source.h"

#include <glog/logging.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
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

std::string NameOf(const SourceTensor& tensor) {
  return tensor.file != nullptr ? tensor.file->path() : "tensor";
}

// Calls body(stored, rows, row) for runs of rows [first, first + count) as they are stored, `row`
// being counted from `first`. Rows of interleaved heads come one by one, in the order of halves.
absl::Status ForStoredRows(
    const SourceTensor& tensor, int64_t first, int64_t count,
    absl::FunctionRef<absl::Status(const std::byte* stored, int64_t rows, int64_t row)> body) {
  const int64_t rows = tensor.rows();
  CHECK(first >= 0 && count >= 0 && first <= rows - count)
      << "rows " << first << " + " << count << " of " << rows;
  const auto row_bytes = static_cast<int64_t>(BytesOf(tensor.dtype, tensor.cols()));
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
      RETURN_IF_ERROR(body(stored, end - begin, row - first));
      row = end;
      continue;
    }
    for (; row < std::min(end, first + count); ++row) {
      const int64_t half = piece_rows / 2;
      const int64_t stored_row = 2 * ((row - begin) % half) + (row - begin) / half;
      RETURN_IF_ERROR(body(stored + stored_row * row_bytes, 1, row - first));
    }
  }
  return absl::OkStatus();
}

}  // namespace

int64_t SourceTensor::rows() const {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return rows;
}

absl::Status ReadRows(const SourceTensor& tensor, int64_t first, int64_t count, float* out) {
  if (!CanDequantize(tensor.dtype)) {
    return absl::UnimplementedError(absl::StrCat(NameOf(tensor), ": element type ",
                                                 std::string(Name(tensor.dtype)),
                                                 " cannot be read as float32"));
  }
  return ForStoredRows(
      tensor, first, count, [&](const std::byte* stored, int64_t rows, int64_t row) {
        DequantizeRow(tensor.dtype, stored, rows * tensor.cols(), out + row * tensor.cols());
        return absl::OkStatus();
      });
}

bool HasBlocksOf(DType stored, DType format) {
  return (format == DType::kQ8_0 && stored == DType::kQ8_0) ||
         (format == DType::kQ4_1 && (stored == DType::kQ4_1 || stored == DType::kQ4_0));
}

absl::Status ReadBlockRows(const SourceTensor& tensor, DType format, int64_t first, int64_t count,
                           std::byte* out) {
  CHECK(HasBlocksOf(tensor.dtype, format)) << Name(tensor.dtype) << " as " << Name(format);
  const size_t row_bytes = BytesOf(format, tensor.cols());
  return ForStoredRows(
      tensor, first, count, [&](const std::byte* stored, int64_t rows, int64_t row) {
        if (tensor.dtype == format) {
          std::copy_n(stored, rows * row_bytes, out + row * row_bytes);
          return absl::OkStatus();
        }
        if (RewriteQ4_0(stored, rows * tensor.cols(), out + row * row_bytes)) {
          return absl::OkStatus();
        }
        return absl::InvalidArgumentError(
            absl::StrCat(NameOf(tensor),
                         ": a block of type q4_0 has a scale beyond 8188, which does not fit "
                         "q4_1; use --weight-storage plain"));
      });
}

absl::Status ReadBytes(const SourceTensor& tensor, std::byte* out) {
  if (tensor.file != nullptr) return tensor.file->Read(tensor.file_offset, {out, tensor.bytes});
  std::copy_n(tensor.data, tensor.bytes, out);
  return absl::OkStatus();
}

}  // namespace keyline
