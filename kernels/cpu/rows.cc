// Operations that take each row by itself: embedding, norm, gathering.
#include <glog/logging.h>

#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/matmul/weight_layout.h"

namespace keyline::cpu {
namespace {

// Rows that make a piece of work worth handing to another thread.
int64_t RowGrain(int64_t cols) { return std::max<int64_t>(1, 16384 / cols); }

}  // namespace

void Embed(Stream& s, TensorView hidden, const Batch& batch, const Weight& table, float scale) {
  AsCpu(s).pool().ParallelFor(
      batch.tokens,
      [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          int32_t id = batch.token_ids[t];
          if (id == kDrawnToken) id = batch.drawn[batch.chunk[batch.token_chunk[t]].lane];
          CHECK(id >= 0 && id < table.rows) << "token id " << id << " of " << table.rows;
          UnpackRow(table, id, scale, hidden.row<float>(t));
        }
      },
      RowGrain(table.cols));
}

void Norm(Stream& s, TensorView out, TensorView in, const RmsNorm& norm) {
  const KernelSet& kernels = AsCpu(s).kernels();
  AsCpu(s).pool().ParallelFor(
      in.rows(),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          kernels.prepare_row(RowFormat::kF32, out.row<float>(i), in.row<float>(i), in.cols(),
                              norm.weight, norm.eps);
        }
      },
      RowGrain(in.cols()));
}

void GatherRows(Stream& s, TensorView out, TensorView in, const int32_t* rows) {
  AsCpu(s).pool().ParallelFor(
      out.rows(),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          CHECK(rows[i] >= 0 && rows[i] < in.rows()) << "row " << rows[i] << " of " << in.rows();
          std::memcpy(out.row<float>(i), in.row<float>(rows[i]), BytesOf(DType::kF32, in.cols()));
        }
      },
      RowGrain(in.cols()));
}

}  // namespace keyline::cpu
