// Log-probabilities of given tokens and of the likeliest tokens. One block a row, which reads it
// once for the softmax.
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device_check.cuh"
#include "kernels/cuda/logits/logit_keys.cuh"
#include "kernels/cuda/logits/softmax_sums.cuh"

namespace keyline::cuda {
namespace {

__device__ SoftmaxSums SumsOfRow(const float* row, int64_t vocabulary, SoftmaxSums* warps) {
  SoftmaxSums sums = SoftmaxSums::None();
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < vocabulary; i += kSelectThreads) sums.Add(row[i]);
  return ReduceBlockSums(sums, warps);
}

__global__ void __launch_bounds__(kSelectThreads)
    TokenLogProbsKernel(float* out, const float* logits, int64_t stride, int64_t vocabulary,
                        const int32_t* targets) {
  __shared__ SoftmaxSums warps[kSelectWarps];
  const int64_t i = blockIdx.x;
  const int32_t target = targets[i];
  if (target < 0) {
    if (threadIdx.x == 0) out[i] = 0;
    return;
  }
  DeviceCheck(target < vocabulary);
  const float* row = logits + i * stride;
  const SoftmaxSums sums = SumsOfRow(row, vocabulary, warps);
  if (threadIdx.x == 0) out[i] = LogProb(row[target], sums.LogSum());
}

// Logits that are not finite rank last.
__global__ void __launch_bounds__(kSelectThreads)
    TopLogProbsKernel(int32_t* tokens, float* logprobs, int count, const float* logits,
                      int64_t stride, int64_t vocabulary) {
  __shared__ SoftmaxSums warps[kSelectWarps];
  __shared__ SelectMemory memory;
  const int64_t i = blockIdx.x;
  const float* row = logits + i * stride;
  const SoftmaxSums sums = SumsOfRow(row, vocabulary, warps);
  const auto key_of = [row](int64_t token) {
    return LogitKey(isfinite(row[token]) ? row[token] : -INFINITY, token);
  };
  uint64_t* best = &memory.warp[0][0];
  SelectLowest(memory, 0, vocabulary, count, TokenBits(vocabulary), key_of, best);
  for (int j = threadIdx.x; j < count; j += kSelectThreads) {
    tokens[i * count + j] = TokenOf(best[j]);
    logprobs[i * count + j] = LogProb(row[TokenOf(best[j])], sums.LogSum());
  }
}

}  // namespace

void TokenLogProbs(Stream& s, float* out, TensorView logits, const int32_t* targets) {
  if (logits.rows() == 0) return;
  TokenLogProbsKernel<<<static_cast<unsigned>(logits.rows()), kSelectThreads, 0, Native(s)>>>(
      out, logits.as<float>(), logits.strides[0], logits.cols(), targets);
  CUDA_CHECK(cudaGetLastError());
}

void TopLogProbs(Stream& s, int32_t* tokens, float* logprobs, int count, TensorView logits) {
  if (logits.rows() == 0) return;
  TopLogProbsKernel<<<static_cast<unsigned>(logits.rows()), kSelectThreads, 0, Native(s)>>>(
      tokens, logprobs, count, logits.as<float>(), logits.strides[0], logits.cols());
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace keyline::cuda
