// Attention over the slots of a cache: which kernels do it, and their scratch memory.
#include "kernels/cuda/attention/attention_kernels.cuh"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/numbers.cuh"

namespace keyline::cuda {
namespace {

KvFormat PlainFormat(DType dtype) {
  return dtype == DType::kF32    ? KvFormat::kF32
         : dtype == DType::kBF16 ? KvFormat::kBF16
                                 : KvFormat::kF16;
}

// Whether FillKv can make tiles of it.
bool Readable(KvFormat format, DType dtype) {
  return IsQuantized(format) || format == PlainFormat(dtype);
}

}  // namespace

bool HasMma(int head_dim) {
  return head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128 || head_dim == 256;
}

void Attention(Stream& s, TensorView out, float* mass, TensorView qkv, const Batch& batch,
               const KvMemory& kv, const SlotTable& table, const AttentionSpec& spec) {
  CHECK_LE(spec.head_dim, kMostHeadDim) << "head_dim";
  CHECK(out.dtype == qkv.dtype);
  AttentionArguments a = {.out = out.data,
                          .out_stride = out.strides[0],
                          .qkv = qkv.data,
                          .qkv_stride = qkv.strides[0],
                          .mass = mass,
                          .lse = nullptr,
                          .parts = nullptr,
                          .logits = nullptr,
                          .chunk = batch.chunk,
                          .kv = kv,
                          .rules = table.rules,
                          .slot_pos = table.slot_pos,
                          .heads = spec.heads,
                          .group = spec.heads / spec.kv_heads,
                          .scale = spec.scale,
                          .softcap = spec.softcap,
                          .window = spec.window};
  // Copies of 16 bytes need rows of queries that begin at multiples of it.
  const bool aligned = qkv.strides[0] % 8 == 0 && reinterpret_cast<uintptr_t>(qkv.data) % 16 == 0 &&
                       out.strides[0] % 2 == 0;
  const bool mma = qkv.dtype != DType::kF32 && HasMma(spec.head_dim) && aligned &&
                   Readable(kv.k_format, qkv.dtype) && Readable(kv.v_format, qkv.dtype);
  const size_t lse = mass == nullptr ? 0 : size_t(batch.tokens) * spec.heads;
  const bool decode = mma && (batch.max_chunk_tokens == 1 || batch.chunks > 1);
  const size_t parts = !decode ? 0
                               : size_t(batch.chunks) * kv.kv_heads * SplitsOf(kv) *
                                     PartFloats(a.group, kv.head_dim);
  const size_t logits =
      !decode || mass == nullptr ? 0 : size_t(batch.chunks) * spec.heads * kv.slots;
  auto* scratch = static_cast<float*>(Scratch(s, (lse + parts + logits) * sizeof(float)));
  a.lse = scratch;
  a.parts = a.lse + lse;
  a.logits = a.parts + parts;
  switch (qkv.dtype) {
    case DType::kF32:
      return AttendSimt<float>(Native(s), a, batch);
    case DType::kF16:
      return mma ? AttendMma<__half>(Native(s), a, batch) : AttendSimt<__half>(Native(s), a, batch);
    case DType::kBF16:
      return mma ? AttendMma<__nv_bfloat16>(Native(s), a, batch)
                 : AttendSimt<__nv_bfloat16>(Native(s), a, batch);
    default:
      LOG(FATAL) << "no attention in " << Name(qkv.dtype);
  }
}

}  // namespace keyline::cuda
