#include "kernels/ops/ops.h"

#include <glog/logging.h>

#include <vector>

#include "kernels/ops/op_table.h"
#include "kernels/ops/weight_blocks.h"

namespace keyline::ops {
namespace {

const OpTable& Table(Stream& s) { return s.device().ops(); }

void CheckMatrix(const char* what, const TensorView& t, int64_t rows, int64_t cols) {
  CHECK_EQ(t.rank, 2) << what;
  CHECK_EQ(t.shape[0], rows) << what << " rows";
  CHECK_EQ(t.shape[1], cols) << what << " columns";
  CHECK_EQ(t.strides[1], 1) << what << " must have contiguous rows";
}

void CheckRows(const Weight& w, int64_t first, int64_t count) {
  CHECK(first >= 0 && count >= 0 && first + count <= w.rows)
      << "rows [" << first << ", " << first + count << ") of " << w.rows;
}

}  // namespace

size_t PackedBytes(const Device& device, DType dtype, int64_t rows, int64_t cols) {
  CHECK_GT(rows, 0);
  CHECK_GT(cols, 0);
  return device.ops().packed_bytes(dtype, rows, cols);
}

void PackRows(const Device& device, const Weight& to, int64_t first, int64_t count,
              const float* source) {
  CheckRows(to, first, count);
  if (!IsPacked(to.dtype)) return device.ops().pack_rows(to, first, count, source);
  const int64_t row_bytes = BlockRowBytes(to.dtype, to.cols);
  std::vector<std::byte> blocks(static_cast<size_t>(count * row_bytes));
  for (int64_t row = 0; row < count; ++row) {
    QuantizeRow(to.dtype, source + row * to.cols, to.cols, blocks.data() + row * row_bytes);
  }
  device.ops().pack_blocks(to, first, count, blocks.data());
}

void PackBlocks(const Device& device, const Weight& to, int64_t first, int64_t count,
                const std::byte* source) {
  CheckRows(to, first, count);
  CHECK(IsPacked(to.dtype)) << Name(to.dtype);
  device.ops().pack_blocks(to, first, count, source);
}

void Embed(Stream& s, TensorView hidden, const Batch& batch, const Weight& table, float scale) {
  CheckMatrix("hidden", hidden, batch.tokens, table.cols);
  Table(s).embed(s, hidden, batch, table, scale);
}

void Norm(Stream& s, TensorView out, TensorView in, const RmsNorm& norm) {
  CheckMatrix("out", out, in.rows(), in.cols());
  CHECK(norm.weight != nullptr);
  Table(s).norm(s, out, in, norm);
}

void MatMul(Stream& s, TensorView out, TensorView in, const Weight& w) {
  CheckMatrix("in", in, in.rows(), w.cols);
  CheckMatrix("out", out, in.rows(), w.rows);
  Table(s).matmul(s, out, in, w);
}

void MatMulAdd(Stream& s, TensorView out, TensorView in, const Weight& w) {
  CheckMatrix("in", in, in.rows(), w.cols);
  CheckMatrix("out", out, in.rows(), w.rows);
  Table(s).matmul_add(s, out, in, w);
}

void NormMatMul(Stream& s, TensorView out, TensorView in, const RmsNorm& norm, const Weight& w) {
  CheckMatrix("in", in, in.rows(), w.cols);
  CheckMatrix("out", out, in.rows(), w.rows);
  CHECK(norm.weight != nullptr);
  Table(s).norm_matmul(s, out, in, norm, w);
}

void NormGatedMatMul(Stream& s, TensorView out, TensorView in, const RmsNorm& norm, const Weight& w,
                     Activation activation) {
  CHECK_EQ(w.rows % 2, 0);
  CheckMatrix("in", in, in.rows(), w.cols);
  CheckMatrix("out", out, in.rows(), w.rows / 2);
  CHECK(norm.weight != nullptr);
  Table(s).norm_gated_matmul(s, out, in, norm, w, activation);
}

void GatherRows(Stream& s, TensorView out, TensorView in, const int32_t* rows) {
  CheckMatrix("in", in, in.rows(), out.cols());
  CheckMatrix("out", out, out.rows(), in.cols());
  Table(s).gather_rows(s, out, in, rows);
}

void Sample(Stream& s, SampledToken* out, const int32_t* first, TensorView logits,
            const int32_t* lanes, const int32_t* positions, const SamplingParams* params,
            int32_t* drawn) {
  CHECK_EQ(logits.rank, 2);
  CHECK(logits.dtype == DType::kF32);
  Table(s).sample(s, out, first, logits, lanes, positions, params, drawn);
}

void TokenLogProbs(Stream& s, float* out, TensorView logits, const int32_t* targets) {
  CHECK_EQ(logits.rank, 2);
  CHECK(logits.dtype == DType::kF32);
  Table(s).token_log_probs(s, out, logits, targets);
}

void TopLogProbs(Stream& s, int32_t* tokens, float* logprobs, int count, TensorView logits) {
  CHECK_EQ(logits.rank, 2);
  CHECK(logits.dtype == DType::kF32);
  CHECK(count >= 1 && count <= kMaxTopLogProbs) << count;
  CHECK_LE(count, logits.cols());
  Table(s).top_log_probs(s, tokens, logprobs, count, logits);
}

size_t ScratchBytes(const Device& device, const PassShape& shape) {
  return device.ops().scratch_bytes(shape);
}

absl::Status ReserveScratch(Stream& s, const PassShape& shape) {
  return Table(s).reserve_scratch(s, shape);
}

}  // namespace keyline::ops
