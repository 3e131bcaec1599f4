// Attention over the slots of a cache: which kernels do it, and their scratch memory.
#include <algorithm>

#include "kernels/cuda/attention/attention_kernels.cuh"
#include "kernels/cuda/attention/decode_pass.cuh"
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

// Whether the tensor core kernels know K and V in these formats.
bool Readable(const KvMemory& kv, DType dtype) {
  return HasDecode(kv.k_format, kv.v_format) &&
         (IsQuantized(kv.k_format) || kv.k_format == PlainFormat(dtype));
}

// Whether the tensor core kernels can do it. Their copies of 16 bytes need rows of queries that
// begin at multiples of it.
bool TakesMma(const TensorView& out, const TensorView& qkv, const KvMemory& kv) {
  return qkv.dtype != DType::kF32 && HasMma(kv.head_dim) && Readable(kv, qkv.dtype) &&
         qkv.strides[0] % 8 == 0 && reinterpret_cast<uintptr_t>(qkv.data) % 16 == 0 &&
         out.strides[0] % 2 == 0;
}

AttentionArguments MakeArguments(const TensorView& out, const TensorView& qkv, const Batch& batch,
                                 const KvMemory& kv, const SlotTable& table,
                                 const AttentionSpec& spec) {
  CHECK_LE(spec.head_dim, kMostHeadDim) << "head_dim";
  CHECK(out.dtype == qkv.dtype);
  return {.out = out.data,
          .out_stride = out.strides[0],
          .qkv = qkv.data,
          .qkv_stride = qkv.strides[0],
          .dtype = qkv.dtype,
          .wants_mass = false,
          .mass = nullptr,
          .lse = nullptr,
          .parts = nullptr,
          .weights = nullptr,
          .discards = false,
          .staged = nullptr,
          .staged_pairs = 0,
          .chunk = batch.chunk,
          .kv = kv,
          .rules = table.rules,
          .slot_pos = table.slot_pos,
          .value_norms = nullptr,
          .heads = spec.heads,
          .group = spec.heads / spec.kv_heads,
          .splits_log2 = Splits::Log2(spec.kv_heads, spec.heads / spec.kv_heads),
          .scale = spec.scale,
          .softcap = spec.softcap,
          .window = spec.window};
}

// Scratch memory for the kernels that will run. whole: of a whole pass; decode: those for chunks of
// one token; staged: those that may copy slots first.
void Provide(Stream& s, AttentionArguments& a, const Batch& batch, bool whole, bool decode,
             bool staged) {
  const size_t parts =
      decode ? size_t(batch.chunks) * a.kv.kv_heads * PartFloats(a.kv, a.group) : 0;
  const size_t weights = decode && a.wants_mass ? size_t(batch.chunks) * a.kv.kv_heads *
                                                      WeightFloats(a.kv.slots, a.group)
                                                : 0;
  const size_t lse = a.wants_mass ? size_t(batch.tokens) * a.heads : 0;
  const KvMemory& kv = a.kv;
  const int pairs = batch.chunks * kv.kv_heads;
  a.staged_pairs = staged ? StagedPairs(pairs, kv.slots, kv.head_dim) : pairs;
  const size_t staged_bytes = staged ? a.staged_pairs * StagedPairBytes(kv.slots, kv.head_dim) : 0;
  const size_t bytes = staged_bytes + (parts + weights + lse) * sizeof(float);
  auto* const scratch =
      static_cast<std::byte*>(whole ? ScratchInTurn(s, bytes) : Scratch(s, bytes));
  a.staged = staged ? scratch : nullptr;
  a.parts = reinterpret_cast<float*>(scratch + staged_bytes);
  a.weights = a.parts + parts;
  a.lse = a.weights + weights;
  // Less than this stays in the L2 cache until it is written again.
  constexpr size_t kDiscardedBytes = 4 << 20;
  a.discards = (parts + weights) * sizeof(float) > kDiscardedBytes;
}

}  // namespace

// As Provide takes it.
size_t AttentionScratch(const PassShape& shape) {
  KvMemory kv;
  kv.slots = shape.slots;
  kv.head_dim = shape.head_dim;
  const int group = shape.heads / shape.kv_heads;
  const size_t lse = size_t(shape.tokens) * shape.heads;
  const size_t decode = size_t(shape.chunks) * shape.kv_heads *
                        (PartFloats(kv, group) + WeightFloats(shape.slots, group));
  size_t staged = 0;
  if (shape.copied_slots && shape.weights != DType::kF32) {
    staged = std::min<int64_t>(int64_t{shape.chunks} * shape.kv_heads,
                               MostStagedPairs(shape.slots, shape.head_dim)) *
             StagedPairBytes(shape.slots, shape.head_dim);
  }
  const size_t pass = (lse + decode) * sizeof(float);
  return std::max(staged + pass, CudaStream::BytesInTurn(pass));
}

bool HasMma(int head_dim) {
  return head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128 || head_dim == 256;
}

void LaunchDecode(Stream& s, const DecodePass& p) {
  const KvMemory& kv = p.attention.kv;
  switch (kv.k_format) {
    case KvFormat::kBF16:
      return LaunchDecodeOf<KvFormat::kBF16, KvFormat::kBF16>(s, p);
    case KvFormat::kF16:
      return LaunchDecodeOf<KvFormat::kF16, KvFormat::kF16>(s, p);
    case KvFormat::kInt4:
      return LaunchDecodeOf<KvFormat::kInt4, KvFormat::kInt4>(s, p);
    case KvFormat::kInt8:
      return kv.v_format == KvFormat::kInt4
                 ? LaunchDecodeOf<KvFormat::kInt8, KvFormat::kInt4>(s, p)
                 : LaunchDecodeOf<KvFormat::kInt8, KvFormat::kInt8>(s, p);
    case KvFormat::kF32:
      break;
  }
  LOG(FATAL) << "no tensor core kernel for float32 caches";
}

void Attention(Stream& s, TensorView out, float* mass, TensorView qkv, const Batch& batch,
               const KvMemory& kv, const SlotTable& table, const AttentionSpec& spec) {
  AttentionArguments a = MakeArguments(out, qkv, batch, kv, table, spec);
  a.wants_mass = mass != nullptr;
  a.mass = mass;
  const bool mma = TakesMma(out, qkv, kv);
  const bool copies = a.wants_mass || IsQuantized(kv.k_format) || IsQuantized(kv.v_format);
  Provide(s, a, batch, /*whole=*/false, mma && (batch.max_chunk_tokens == 1 || batch.chunks > 1),
          mma && batch.max_chunk_tokens > 1 && copies);
  switch (qkv.dtype) {
    case DType::kF32:
      return AttendSimt<float>(s, a, batch);
    case DType::kF16:
      return mma ? AttendMma<__half>(s, a, batch) : AttendSimt<__half>(s, a, batch);
    case DType::kBF16:
      return mma ? AttendMma<__nv_bfloat16>(s, a, batch) : AttendSimt<__nv_bfloat16>(s, a, batch);
    default:
      LOG(FATAL) << "no attention in " << Name(qkv.dtype);
  }
}

bool AttendDecode(Stream& s, TensorView out, TensorView qkv, const Batch& batch, const KvMemory& kv,
                  const SlotTable& table, const Placement& placement, const AttentionSpec& spec,
                  std::span<const PolicyRule> policies) {
  if (!PlacesAlone(policies) || !TakesMma(out, qkv, kv)) return false;
  // By operations of its own the mass weighted by norms is summed from weights of float16, here
  // from what they were; which it is depends on whether others' prompts share the pass.
  const bool weighs = std::ranges::any_of(
      policies, [](const PolicyRule& rule) { return rule.by_score && rule.score.value_norms; });
  if (weighs && IsDeterministic(s)) return false;
  DecodePass pass = {.attention = MakeArguments(out, qkv, batch, kv, table, spec),
                     .batch = batch,
                     .whole = true,
                     .table = table,
                     .placement = placement,
                     .spec = spec};
  std::copy(policies.begin(), policies.end(), pass.policies);
  pass.attention.wants_mass = table.scores != nullptr;
  pass.attention.value_norms = table.value_norms;
  Provide(s, pass.attention, batch, /*whole=*/true, /*decode=*/true, /*staged=*/false);
  if (qkv.dtype == DType::kF16) {
    RunDecodePass<__half>(s, pass);
  } else {
    RunDecodePass<__nv_bfloat16>(s, pass);
  }
  return true;
}

}  // namespace keyline::cuda
