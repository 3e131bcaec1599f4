// The operations of the CUDA backend, for the op table in cuda_device.cc. Contracts:
// kernels/ops/ops.h and cache_ops.h. Each launcher enqueues on the stream's native stream and never
// waits; activations are f32, f16 or bf16 tensors, all of one type within a call unless stated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/batch.h"
#include "kernels/ops/cache_memory.h"
#include "kernels/ops/weight.h"

namespace keyline::cuda {

// matmul/
size_t PackedBytes(DType dtype, int64_t rows, int64_t cols);
void PackRows(const Weight& to, int64_t first, int64_t count, const float* source);
void PackBlocks(const Weight& to, int64_t first, int64_t count, const std::byte* source);
void MatMul(Stream& s, TensorView out, TensorView in, const Weight& w);
void MatMulAdd(Stream& s, TensorView out, TensorView in, const Weight& w);
void NormMatMul(Stream& s, TensorView out, TensorView in, const RmsNorm& norm, const Weight& w);
void NormGatedMatMul(Stream& s, TensorView out, TensorView in, const RmsNorm& norm, const Weight& w,
                     Activation activation);

// rows.cu
void Embed(Stream& s, TensorView hidden, const Batch& batch, const Weight& table, float scale);
void Norm(Stream& s, TensorView out, TensorView in, const RmsNorm& norm);
void GatherRows(Stream& s, TensorView out, TensorView in, const int32_t* rows);

// logits/
void Sample(Stream& s, SampledToken* out, const int32_t* first, TensorView logits,
            const int32_t* lanes, const int32_t* positions, const SamplingParams* params,
            int32_t* drawn);
void TokenLogProbs(Stream& s, float* out, TensorView logits, const int32_t* targets);
void TopLogProbs(Stream& s, int32_t* tokens, float* logprobs, int count, TensorView logits);

size_t MatMulScratch(const PassShape& shape);  // matmul.cu
size_t TrialBytes(const PassShape& shape);     // large_matmul.cc: the largest product's output

// attention/
size_t AttentionScratch(const PassShape& shape);
void Attention(Stream& s, TensorView out, float* mass, TensorView qkv, const Batch& batch,
               const KvMemory& kv, const SlotTable& table, const AttentionSpec& spec);
bool AttendDecode(Stream& s, TensorView out, TensorView qkv, const Batch& batch, const KvMemory& kv,
                  const SlotTable& table, const Placement& placement, const AttentionSpec& spec,
                  std::span<const PolicyRule> policies);

// cache/
size_t PlaceScratch(const PassShape& shape);
void ClearLane(Stream& s, const SlotTable& table, int lane);
void PlaceInRing(Stream& s, const Placement& out, const Batch& batch, const SlotTable& table,
                 int policy);
void PlaceByScore(Stream& s, const Placement& out, const Batch& batch, const SlotTable& table,
                  int policy, const ScoreRule& rule);
void MoveSlots(Stream& s, const KvMemory& kv, const SlotTable& table, const Placement& placement,
               const Batch& batch);
void RotateAndWrite(Stream& s, const KvMemory& kv, const SlotTable& table,
                    const Placement& placement, TensorView qkv, const Batch& batch,
                    const AttentionSpec& spec);
bool PlaceDecode(Stream& s, std::span<const PlacedCache> layers, const Batch& batch,
                 std::span<const PolicyRule> policies);
void AddScores(Stream& s, const SlotTable& table, const float* mass, const Batch& batch, int policy,
               const ScoreRule& rule);
void AdvanceLanes(Stream& s, const SlotTable& table, const Batch& batch);
void PackLane(Stream& s, std::byte* packed, const KvMemory& kv, int lane, int slots);
void UnpackLane(Stream& s, const KvMemory& kv, int lane, int slots, const std::byte* packed);

// probe.cu
// What the kernels that the current device runs were written for, such as 90; code of an older
// architecture may run on a newer one.
int CodeVersion();
void ReadMemory(Stream& s, const void* memory, size_t bytes);
double MultiplyRate(Stream& s, DType dtype);
double UploadRate(Stream& s);

}  // namespace keyline::cuda
