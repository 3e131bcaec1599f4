// The CPU's entries of the OpTable (cpu_device.cc fills it in). Contracts: kernels/ops/ops.h.
#pragma once

#include <cstdint>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/batch.h"
#include "kernels/ops/weight.h"

namespace keyline::cpu {

// rows.cc
void Embed(Stream& s, TensorView hidden, const Batch& batch, const Weight& table, float scale);
void Norm(Stream& s, TensorView out, TensorView in, const RmsNorm& norm);
void GatherRows(Stream& s, TensorView out, TensorView in, const int32_t* rows);

// matmul/matmul.cc
void MatMul(Stream& s, TensorView out, TensorView in, const Weight& w);
void MatMulAdd(Stream& s, TensorView out, TensorView in, const Weight& w);
void NormMatMul(Stream& s, TensorView out, TensorView in, const RmsNorm& norm, const Weight& w);
void NormGatedMatMul(Stream& s, TensorView out, TensorView in, const RmsNorm& norm, const Weight& w,
                     Activation activation);

size_t MatMulScratch(const PassShape& shape);

// attention/attention.cc
size_t AttentionScratch(const PassShape& shape);

// logits/sample.cc
size_t SampleScratch(const PassShape& shape);
void Sample(Stream& s, SampledToken* out, const int32_t* first, TensorView logits,
            const int32_t* lanes, const int32_t* positions, const SamplingParams* params,
            int32_t* drawn);

// logits/log_probs.cc
void TokenLogProbs(Stream& s, float* out, TensorView logits, const int32_t* targets);
void TopLogProbs(Stream& s, int32_t* tokens, float* logprobs, int count, TensorView logits);

// matmul/probe.cc
void ReadMemory(Stream& s, const void* memory, size_t bytes);
double MultiplyRate(Stream& s, DType dtype);
double UploadRate(Stream& s);

}  // namespace keyline::cpu
