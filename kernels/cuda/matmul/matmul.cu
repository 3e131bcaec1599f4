// The products of a model: our own kernels for few rows, cuBLASLt for many.
#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/matmul/activate.cuh"
#include "kernels/cuda/matmul/product.h"
#include "kernels/cuda/matmul/weight_layout.h"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/rms_norm.cuh"
#include "kernels/ops/weight_blocks.h"

namespace keyline::cuda {
namespace {

constexpr int kThreads = 256;
constexpr size_t kAlignment = 256;

unsigned BlocksFor(int64_t elements) {
  return static_cast<unsigned>((elements + kThreads - 1) / kThreads);
}

size_t RoundUp(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// out[m, n] = sums[m, n] + bias[n], or that added to out: rounded once.
template <class Out>
__global__ void AddBias(Out* out, int64_t stride, const float* sums, int64_t rows, int64_t cols,
                        const float* bias, bool add) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= rows * cols) return;
  Out& x = out[i / cols * stride + i % cols];
  const float sum = sums[i] + bias[i % cols];
  x = FromFloat<Out>(add ? ToFloat(x) + sum : sum);
}

// out[m, n] = act(sums[m, n]) * sums[m, inner + n], biases added first. A thread takes kCount
// outputs of a row; grid: (rows, blocks of a row).
template <class T, int kCount>
__global__ void Gate(T* out, int64_t stride, const T* sums, int64_t inner, const float* bias,
                     Activation activation) {
  const int64_t n = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kCount;
  if (n >= inner) return;
  const T* row = sums + blockIdx.x * 2 * inner;
  const auto gates = *reinterpret_cast<const Run<T, kCount>*>(row + n);
  const auto ups = *reinterpret_cast<const Run<T, kCount>*>(row + inner + n);
  Run<T, kCount> result;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    float gate = ToFloat(gates.value[j]);
    float up = ToFloat(ups.value[j]);
    if (bias != nullptr) {
      gate += bias[n + j];
      up += bias[inner + n + j];
    }
    result.value[j] = FromFloat<T>(Activate(activation, gate) * up);
  }
  *reinterpret_cast<Run<T, kCount>*>(out + blockIdx.x * stride + n) = result;
}

// What MultiplyPlain needs of scratch memory.
struct ScratchPlan {
  size_t normed = 0;
  size_t sums = 0;  // what a large product leaves to the kernel that adds the bias or the gate
};

DType SumsType(const Product& p) { return p.gated ? p.in.dtype : DType::kF32; }

bool Finishes(const Product& p) {
  return p.in.rows() > kSmallRows && (p.gated || p.w.bias != nullptr);
}

size_t NormedBytes(const Product& p) {
  return p.norm_weight != nullptr ? RoundUp(BytesOf(p.in.dtype, p.in.rows() * p.in.cols())) : 0;
}

ScratchPlan PlanOf(Stream& s, const Product& p) {
  if (TakesSkinny(s, p)) return {};
  const int64_t rows = p.in.rows();
  if (p.w.dtype == DType::kF32 && rows <= kSmallRows) return {};
  return {.normed = NormedBytes(p),
          .sums = Finishes(p) ? BytesOf(SumsType(p), rows * p.w.rows) : 0};
}

// p.in normed into `scratch`.
Product Normed(Stream& s, Product p, std::byte* scratch) {
  const TensorView normed = MakeView(scratch, p.in.dtype, {p.in.rows(), p.in.cols()});
  Norm(s, normed, p.in, {p.norm_weight, p.eps});
  p.in = normed;
  p.norm_weight = nullptr;
  return p;
}

// Norm, product and gate apart, in what order the number of rows asks for. scratch: what PlanOf
// says.
void MultiplyPlain(Stream& s, Product p, std::byte* scratch) {
  CHECK(p.in.dtype == p.w.dtype) << Name(p.in.dtype) << " rows, " << Name(p.w.dtype) << " weights";
  if (TakesSkinny(s, p)) return SkinnyProduct(s, p);
  const int64_t rows = p.in.rows();
  if (p.w.dtype == DType::kF32 && rows <= kSmallRows) return SmallProduct(s, p);

  const size_t normed_bytes = NormedBytes(p);
  const DType sums_type = SumsType(p);
  if (p.norm_weight != nullptr) {
    p = Normed(s, p, scratch);
    if (TakesSkinny(s, p)) return SkinnyProduct(s, p);
  }
  if (rows <= kSmallRows) return SmallProduct(s, p);
  if (!Finishes(p)) return LargeProduct(s, p.out, p.in, p.w, p.add);
  const TensorView sums = MakeView(scratch + normed_bytes, sums_type, {rows, p.w.rows});
  LargeProduct(s, sums, p.in, p.w, /*add=*/false);
  if (!p.gated) {
    DispatchFloat(p.out.dtype, [&](auto type) {
      using Out = decltype(type);
      AddBias<<<BlocksFor(rows * p.w.rows), kThreads, 0, Native(s)>>>(
          p.out.as<Out>(), p.out.strides[0], sums.as<const float>(), rows, p.w.rows, p.w.bias,
          p.add);
    });
  } else {
    DispatchFloat(p.in.dtype, [&](auto type) {
      using T = decltype(type);
      const int64_t inner = p.w.rows / 2;
      const bool runs = inner % kRun == 0 && p.out.strides[0] % kRun == 0 &&
                        reinterpret_cast<uintptr_t>(p.out.data) % 16 == 0;
      const auto kernel = runs ? Gate<T, kRun> : Gate<T, 1>;
      const dim3 grid(static_cast<unsigned>(rows), BlocksFor(inner / (runs ? kRun : 1)));
      kernel<<<grid, kThreads, 0, Native(s)>>>(p.out.as<T>(), p.out.strides[0], sums.as<const T>(),
                                               inner, p.w.bias, p.activation);
    });
  }
  CUDA_CHECK(cudaGetLastError());
}

Product RowsOf(const Product& p, int64_t first, int64_t count) {
  Product some = p;
  some.in = p.in.Rows(first, count);
  some.out = p.out.Rows(first, count);
  return some;
}

// Outputs that are dequantised at a time: whole tiles, and runs of 16 bytes of what comes out.
constexpr int64_t kPieceOutputs = 64;
constexpr size_t kPieceBytes = size_t{64} << 20;

// The product of outputs [first, first + count) of `p` alone, but for its weight.
Product PieceOf(const Product& p, int64_t first, int64_t count) {
  Product piece = p;
  piece.out = p.out.Columns(first, count);
  piece.w.dtype = p.in.dtype;
  piece.w.rows = p.gated ? 2 * count : count;
  if (p.w.bias != nullptr) piece.w.bias = p.w.bias + first;
  return piece;
}

// By way of plain weights, some outputs at a time. Scratch memory: normed rows, the piece's
// weights, its biases where a gate's and those of its up projection lie apart, what its product
// needs.
void MultiplyDequantized(Stream& s, Product p) {
  const int64_t outputs = p.out.cols();
  const int halves = p.gated ? 2 : 1;
  const size_t row_bytes = BytesOf(p.in.dtype, PaddedCols(p.w.cols)) * halves;
  const auto fits = static_cast<int64_t>(kPieceBytes / row_bytes) / kPieceOutputs * kPieceOutputs;
  const int64_t most = std::min(outputs, std::max(kPieceOutputs, fits));
  const size_t normed = NormedBytes(p);
  const size_t weights = RoundUp(most * row_bytes);
  const bool gathers = p.gated && p.w.bias != nullptr;
  const size_t biases = gathers ? RoundUp(most * halves * sizeof(float)) : 0;
  Product of_piece = PieceOf(p, 0, most);
  of_piece.norm_weight = nullptr;
  const ScratchPlan plan = PlanOf(s, of_piece);
  auto* scratch = static_cast<std::byte*>(Scratch(s, normed + weights + biases + plan.sums));
  if (p.norm_weight != nullptr) p = Normed(s, p, scratch);
  std::byte* const piece_weights = scratch + normed;
  auto* const piece_biases = reinterpret_cast<float*>(piece_weights + weights);
  for (int64_t first = 0; first < outputs; first += most) {
    const int64_t count = std::min(most, outputs - first);
    Product piece = PieceOf(p, first, count);
    piece.w.data = piece_weights;
    for (int half = 0; half < halves; ++half) {
      const int64_t from = first + half * outputs;
      Dequantize(s, piece_weights + half * count * (row_bytes / halves), p.in.dtype, p.w, from,
                 count);
      if (gathers) {
        CUDA_CHECK(cudaMemcpyAsync(piece_biases + half * count, p.w.bias + from,
                                   count * sizeof(float), cudaMemcpyDeviceToDevice, Native(s)));
      }
    }
    if (gathers) piece.w.bias = piece_biases;
    MultiplyPlain(s, piece, piece_weights + weights + biases);
  }
}

void MultiplyPacked(Stream& s, const Product& p) {
  if (TakesPacked(p)) return PackedProduct(s, p);
  const int64_t rows = p.in.rows();
  if (rows == 0) return;
  const auto group = [&](const Product& all, int64_t first) {
    Product some = RowsOf(all, first, std::min<int64_t>(kSkinnyRows, rows - first));
    some.norm_weight = nullptr;
    return some;
  };
  if (rows > kPackedSkinnyRows || !TakesPacked(group(p, 0))) return MultiplyDequantized(s, p);
  const Product normed = p.norm_weight == nullptr
                             ? p
                             : Normed(s, p, static_cast<std::byte*>(Scratch(s, NormedBytes(p))));
  for (int64_t first = 0; first < rows; first += kSkinnyRows) {
    PackedProduct(s, group(normed, first));
  }
}

void MultiplyTogether(Stream& s, const Product& p) {
  if (IsPacked(p.w.dtype)) return MultiplyPacked(s, p);
  const ScratchPlan plan = PlanOf(s, p);
  const size_t bytes = plan.normed + plan.sums;
  MultiplyPlain(s, p, bytes == 0 ? nullptr : static_cast<std::byte*>(Scratch(s, bytes)));
}

// Always by one of our own kernels, which one the weight decides. In it a row's sums have one
// order, whatever rows there are beside it; but it reads the weights anew for each group of rows,
// and norms come first, since that kernel norms a few rows only. cuBLASLt is faster with many rows,
// and what it does depends on their number.
void MultiplyInGroups(Stream& s, Product p) {
  const int64_t rows = p.in.rows();
  if (rows == 0) return;
  Product normed = RowsOf(p, 0, std::min<int64_t>(rows, kSkinnyRows));
  normed.norm_weight = nullptr;
  const bool on_tensor_cores = IsPacked(p.w.dtype) ? TakesPacked(normed) : TakesSkinny(s, normed);
  if (on_tensor_cores && p.norm_weight != nullptr) {
    p = Normed(s, p, static_cast<std::byte*>(Scratch(s, NormedBytes(p))));
  }
  const int64_t most = on_tensor_cores ? kSkinnyRows : kSmallRows;
  for (int64_t first = 0; first < rows; first += most) {
    MultiplyTogether(s, RowsOf(p, first, std::min(most, rows - first)));
  }
}

void Multiply(Stream& s, const Product& p) {
  const GoesOnBeside beside(s);  // products share no memory with others but Scratch's, which joins
  if (IsDeterministic(s)) {
    MultiplyInGroups(s, p);
  } else {
    MultiplyTogether(s, p);
  }
}

}  // namespace

// As Multiply takes it: normed rows, a piece of dequantised weights with its biases, and sums
// before bias or gate.
size_t MatMulScratch(const PassShape& shape) {
  const DType type = IsFloat(shape.weights) ? shape.weights : DType::kBF16;
  const int64_t rows = std::max(shape.tokens, shape.logit_rows);
  const int64_t inputs = std::max({shape.hidden, shape.attended, shape.mlp});
  const size_t row = BytesOf(type, 2 * PaddedCols(inputs)) + 2 * sizeof(float);
  const size_t piece = shape.packed ? kPieceBytes + (kPieceOutputs + 1) * row + 2 * kAlignment : 0;
  const size_t biases = shape.packed ? int64_t{2} * shape.mlp * sizeof(float) : 0;
  return RoundUp(BytesOf(type, rows * inputs)) + piece + biases +
         std::max(BytesOf(type, int64_t{2} * shape.tokens * shape.mlp),
                  BytesOf(DType::kF32, int64_t{shape.tokens} * std::max(shape.qkv, shape.hidden)));
}

void MatMul(Stream& s, TensorView out, TensorView in, const Weight& w) {
  Multiply(s, {.out = out, .in = in, .w = w});
}

void MatMulAdd(Stream& s, TensorView out, TensorView in, const Weight& w) {
  Multiply(s, {.out = out, .in = in, .w = w, .add = true});
}

void NormMatMul(Stream& s, TensorView out, TensorView in, const RmsNorm& norm, const Weight& w) {
  Multiply(s, {.out = out, .in = in, .w = w, .norm_weight = norm.weight, .eps = norm.eps});
}

void NormGatedMatMul(Stream& s, TensorView out, TensorView in, const RmsNorm& norm, const Weight& w,
                     Activation activation) {
  CHECK(out.dtype == in.dtype) << Name(out.dtype) << " from " << Name(in.dtype);
  Multiply(s, {.out = out,
               .in = in,
               .w = w,
               .norm_weight = norm.weight,
               .eps = norm.eps,
               .gated = true,
               .activation = activation});
}

}  // namespace keyline::cuda
