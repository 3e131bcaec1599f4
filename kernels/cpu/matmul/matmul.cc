// Matrix products of the CPU: rows of activations against tiles of 16 outputs.
//
// First the rows are prepared (norm, rounding to what the weights meet) into scratch; then threads
// share out panels of tiles. Within a panel a block of weights small enough for the L2 cache meets
// all rows of a chunk, a register block at a time; partial sums over the inputs wait in float32,
// which keeps every output one chain of multiply-adds in the order of its inputs, whatever the
// number of rows.
#include <algorithm>
#include <array>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/matmul/weight_layout.h"

namespace keyline::cpu {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kBlockBytes = 64 << 10;  // of a tile; 4 of them are 256 KiB
constexpr int64_t kStreamRows = 4;  // so few rows are fastest with a single stream of weights
constexpr int64_t kChunkRows = 64;  // rows whose partial sums a thread keeps at once

// Rows of activations as tile kernels want them.
struct PreparedRows {
  const std::byte* data = nullptr;
  int64_t stride = 0;      // bytes
  int64_t step_bytes = 0;  // of a row for one step of the weights
};

int TilesOf(int64_t outputs) { return static_cast<int>((outputs + kLanes - 1) / kLanes); }

int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

const TileKernels& TilesFor(const KernelSet& kernels, DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return kernels.q8;
    case DType::kQ4_1:
      return kernels.q4;
    case DType::kF32:
      return kernels.f32;
    default:
      return kernels.bf16;
  }
}

// Of a row of activations for one step of the weights.
int64_t StepBytes(RowFormat format) {
  if (format == RowFormat::kInt8Blocks) return sizeof(RowBlock);
  return format == RowFormat::kF32Rounded ? 8 : 4;
}

// `norm` null: the rows as they are.
PreparedRows PrepareRows(CpuStream& s, TensorView in, const RmsNorm* norm, const TileKernels& tiles,
                         int64_t steps) {
  const RowFormat format = tiles.row_format;
  PreparedRows rows;
  rows.step_bytes = StepBytes(format);
  // An odd number of cache lines, so that the rows of a block do not meet in one set of the cache.
  rows.stride = (RoundUp(steps * rows.step_bytes, kLine) / kLine | 1) * kLine;
  auto* scratch = static_cast<std::byte*>(s.Scratch(in.rows() * rows.stride));
  rows.data = scratch;
  const float* weight = norm == nullptr ? nullptr : norm->weight;
  const float eps = norm == nullptr ? 0.0f : norm->eps;
  s.pool().ParallelFor(
      in.rows(),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          s.kernels().prepare_row(format, scratch + i * rows.stride, in.row<float>(i), in.cols(),
                                  weight, eps);
        }
      },
      std::max<int64_t>(1, 16384 / in.cols()));
  return rows;
}

// One product: what all its tasks share.
struct Product {
  const KernelSet* kernels;
  const TileKernels* tiles;
  PreparedRows rows;
  TensorView out;
  Weight weight;
  WeightLayout layout;
  Finish finish;
  bool gated;   // weights [2 * outputs]: the gate's rows, then those of the up projection
  int columns;  // tiles that go through the kernel together
  int panel;    // tiles of outputs in a task
  int64_t panels;
  int64_t chunks;  // of rows
};

// Sums of one chunk of rows, in the task's own memory. A row: [panel][16] and, if gated, as much
// for the up projection and one tile more, because its first row may lie within a tile.
struct ChunkSums {
  float* data;
  int64_t stride;
};
constexpr int kMaxStreamPanel = 8;
constexpr int64_t kChunkSumsSize = kChunkRows * (2 * kMaxTileColumns + 1) * kLanes;
static_assert(kChunkSumsSize >= kStreamRows * (2 * kMaxStreamPanel + 1) * kLanes);

void MultiplyColumns(const Product& p, int64_t first_tile, int columns, int64_t first_row,
                     int64_t rows, ChunkSums sums) {
  const auto* weights = static_cast<const std::byte*>(p.weight.data);
  TileArgs args;
  args.a_stride = p.rows.stride;
  args.w_stride = p.layout.tile_bytes;
  args.c_stride = sums.stride;
  const int64_t block_steps = kBlockBytes / p.layout.step_bytes;
  for (int64_t step = 0; step < p.layout.steps; step += block_steps) {
    args.steps = std::min(block_steps, p.layout.steps - step);
    args.w = weights + first_tile * p.layout.tile_bytes + step * p.layout.step_bytes;
    args.first = step == 0;
    const bool last_block = step + args.steps == p.layout.steps;
    for (int64_t row = 0; row < rows; row += p.tiles->rows) {
      const int64_t block = std::min<int64_t>(p.tiles->rows, rows - row);
      // After the last rows come the next weights, otherwise the same again.
      if (row + block < rows) {
        args.next_offset = -args.steps * p.layout.step_bytes;
      } else {
        args.next_offset = last_block ? (columns - 1) * p.layout.tile_bytes : 0;
      }
      args.a = p.rows.data + (first_row + row) * p.rows.stride + step * p.rows.step_bytes;
      args.c = sums.data + row * sums.stride;
      p.tiles->kernel[block][columns](args);
    }
  }
}

void MultiplyTiles(const Product& p, int64_t first_tile, int tiles, int64_t first_row, int64_t rows,
                   ChunkSums sums) {
  for (int t = 0; t < tiles; t += p.columns) {
    MultiplyColumns(p, first_tile + t, std::min(p.columns, tiles - t), first_row, rows,
                    {sums.data + t * kLanes, sums.stride});
  }
}

void RunTask(const Product& p, int64_t task) {
  alignas(64) std::array<float, kChunkSumsSize> memory;
  const int64_t outputs = p.out.cols();
  const int64_t first_tile = task / p.chunks * p.panel;
  const int64_t first = first_tile * kLanes;
  const int64_t first_row = task % p.chunks * kChunkRows;
  const int64_t rows = std::min(kChunkRows, p.out.rows() - first_row);
  const int64_t width = p.panel * kLanes;

  FinishArgs args;
  args.finish = p.finish;
  args.count = static_cast<int>(std::min(width, outputs - first));
  if (p.weight.bias != nullptr) args.bias = p.weight.bias + first;
  const ChunkSums sums = {memory.data(), p.gated ? 2 * width + kLanes : width};
  MultiplyTiles(p, first_tile, TilesOf(args.count), first_row, rows, sums);
  const int64_t up_lane = outputs % kLanes;  // of the up projection's first row in its tile
  if (p.gated) {
    MultiplyTiles(p, first_tile + outputs / kLanes, TilesOf(up_lane + args.count), first_row, rows,
                  {sums.data + width, sums.stride});
    if (args.bias != nullptr) args.up_bias = args.bias + outputs;
  }
  for (int64_t row = 0; row < rows; ++row) {
    args.sums = sums.data + row * sums.stride;
    if (p.gated) args.up_sums = args.sums + width + up_lane;
    args.out = p.out.row<float>(first_row + row) + first;
    p.kernels->finish_row(args);
  }
}

void Multiply(CpuStream& s, TensorView out, TensorView in, const RmsNorm* norm, const Weight& w,
              Finish finish) {
  if (in.rows() == 0) return;
  Product p;
  p.kernels = &s.kernels();
  p.tiles = &TilesFor(*p.kernels, w.dtype);
  p.layout = LayoutOf(w.dtype, w.rows, w.cols);
  p.rows = PrepareRows(s, in, norm, *p.tiles, p.layout.steps);
  p.out = out;
  p.weight = w;
  p.finish = finish;
  p.gated = finish != Finish::kStore && finish != Finish::kAdd;
  const int tiles = TilesOf(out.cols());
  if (in.rows() <= kStreamRows) {
    p.columns = 1;
    p.panel =
        std::clamp(tiles / (s.pool().threads() * ThreadPool::kPiecesPerThread), 1, kMaxStreamPanel);
  } else {
    p.columns = p.tiles->columns;
    p.panel = p.columns;
  }
  p.panels = (tiles + p.panel - 1) / p.panel;
  p.chunks = (in.rows() + kChunkRows - 1) / kChunkRows;
  s.pool().ParallelFor(p.panels * p.chunks, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) RunTask(p, task);
  });
}

Finish GateOf(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return Finish::kSiluGate;
    case Activation::kGeluTanh:
      return Finish::kGeluTanhGate;
    case Activation::kGelu:
      return Finish::kGeluGate;
  }
  return Finish::kSiluGate;
}

}  // namespace

size_t MatMulScratch(const PassShape& shape) {
  // At most four bytes an input in every format, whole steps, and an odd number of lines.
  const int64_t inputs = std::max({shape.hidden, shape.attended, shape.mlp});
  const int64_t stride = RoundUp(RoundUp(inputs, kBlockInputs) * 4, kLine) + kLine;
  return std::max(shape.tokens, shape.logit_rows) * stride;
}

void MatMul(Stream& s, TensorView out, TensorView in, const Weight& w) {
  Multiply(AsCpu(s), out, in, nullptr, w, Finish::kStore);
}

void MatMulAdd(Stream& s, TensorView out, TensorView in, const Weight& w) {
  Multiply(AsCpu(s), out, in, nullptr, w, Finish::kAdd);
}

void NormMatMul(Stream& s, TensorView out, TensorView in, const RmsNorm& norm, const Weight& w) {
  Multiply(AsCpu(s), out, in, &norm, w, Finish::kStore);
}

void NormGatedMatMul(Stream& s, TensorView out, TensorView in, const RmsNorm& norm, const Weight& w,
                     Activation activation) {
  Multiply(AsCpu(s), out, in, &norm, w, GateOf(activation));
}

}  // namespace keyline::cpu
