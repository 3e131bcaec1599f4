// One token for each row of logits: the largest, or one drawn from the filtered distribution. The
// filters and their order are those of kernels/cpu/logits/sample.cc.
//
// The blocks of a cluster share a row, each with one range of token ids; where there are no
// clusters one block has all of it. top_k and top_p search the lowest ranking token that they keep
// (select.cuh) and nothing is sorted. Probabilities are sums of integers, multiples of 2^-40 of the
// largest: exact, so the same whoever adds them.
#include <cfloat>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/logits/logit_keys.cuh"
#include "kernels/cuda/logits/softmax_sums.cuh"
#include "kernels/cuda/select.cuh"
#include "kernels/ops/philox.h"

namespace keyline::cuda {
namespace {

// What the blocks of a row read of each other, in shared memory.
struct Published {
  SoftmaxSums sums;
  uint64_t best;
  uint64_t mass;
};

// What one block does for its row; all threads together.
template <int kBlocks>
class RowSampler {
 public:
  __device__ RowSampler(const float* logits, int64_t vocabulary, SelectMemory& memory,
                        Published& published)
      : logits_(logits), vocabulary_(vocabulary), memory_(memory), published_(published) {
    const int64_t part = RoundUp((vocabulary + kBlocks - 1) / kBlocks);
    begin_ = min(BlocksOfRow<kBlocks>().block_rank() * part, vocabulary);
    end_ = min(begin_ + part, vocabulary);
  }

  // The whole row's sums and its largest logit's key.
  __device__ void ReadRow(SoftmaxSums* warps) {
    SoftmaxSums sums = SoftmaxSums::None();
    uint64_t best = kNoKey;
    // Many loads at a time: a thread has few tokens, and their latency is most of what it costs.
    constexpr int kLoads = 16;
    for (int64_t base = begin_ + threadIdx.x; base < end_; base += kLoads * kSelectThreads) {
      float x[kLoads];
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const int64_t i = base + j * kSelectThreads;
        x[j] = i < end_ ? logits_[i] : -INFINITY;  // which has no part in anything
      }
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        sums.Add(x[j]);
        best = Minimum()(best, Key(x[j], base + j * kSelectThreads));
      }
    }
    sums = ReduceBlockSums(sums, warps);
    best = ReduceBlock(best, Minimum(), kNoKey);
    if (threadIdx.x == 0) {
      published_.sums = sums;
      published_.best = best;
    }
    const auto blocks = BlocksOfRow<kBlocks>();
    blocks.sync();
    const int lane = threadIdx.x % kWarp;
    const Published* other = blocks.map_shared_rank(&published_, lane % kBlocks);
    sums_ = ReduceSums(lane < kBlocks ? other->sums : SoftmaxSums::None());
    best_ = ReduceWarp(other->best, Minimum());
  }

  __device__ const SoftmaxSums& sums() const { return sums_; }
  __device__ int32_t best() const { return TokenOf(best_); }

  // The token drawn, in the one thread of the row that finds it; -1 in all others.
  // REQUIRES: a finite logit and a temperature above 0.
  __device__ int32_t Draw(const SamplingParams& params, int32_t position) {
    // Of temperatures so small that their inverse is infinite the largest logit must keep weight 1.
    scale_ = fminf(1.0f / params.temperature, FLT_MAX);
    const int id_bits = TokenBits(vocabulary_);
    if (params.top_k > 0 && params.top_k < sums_.finite) {
      limit_ = LimitKey(
          memory_, begin_, end_, params.top_k, id_bits, [this](int64_t i) { return Key(i); },
          CountKeys(), RowSum<kBlocks>());
    }
    if (params.top_p < 1) {
      uint64_t ahead = 0;
      const uint64_t total = SumOfRow(BlockMass([this](uint64_t key) { return Mass(key); }), ahead);
      uint64_t target = __double2ull_ru(params.top_p * static_cast<double>(total));
      target = target < 1 ? 1 : target > total ? total : target;  // never less than the largest
      limit_ = LimitKey(
          memory_, begin_, end_, target, id_bits, [this](int64_t i) { return Kept(i); },
          [this](uint64_t key) { return Mass(key); }, RowSum<kBlocks>());
    }
    const float min_p = params.min_p;
    const auto mass_of = [this, min_p](uint64_t key) {
      return key == best_ || WeightOf(key) >= min_p ? Mass(key) : 0;
    };
    uint64_t ahead = 0;
    const uint64_t total = SumOfRow(BlockMass(mass_of), ahead);
    const double draw = SamplingDraw(params.seed, params.sequence, static_cast<uint32_t>(position));
    uint64_t target = __double2ull_rd(draw * static_cast<double>(total));
    if (target >= total) target = total - 1;  // rounding used the draw up
    return Find(mass_of, ahead, target);
  }

 private:
  __device__ static int64_t RoundUp(int64_t n) { return (n + kWarp - 1) / kWarp * kWarp; }

  __device__ static uint64_t Key(float logit, int64_t i) {
    return isfinite(logit) ? LogitKey(logit, i) : kNoKey;
  }
  __device__ uint64_t Key(int64_t i) const { return Key(logits_[i], i); }
  __device__ uint64_t Kept(int64_t i) const {
    const uint64_t key = Key(i);
    return key <= limit_ ? key : kNoKey;
  }
  __device__ float WeightOf(uint64_t key) const {
    return expf((LogitOf(key) - sums_.max) * scale_);
  }
  __device__ uint64_t Mass(uint64_t key) const { return __float2ull_rn(WeightOf(key) * 0x1p40f); }

  // A warp's range of ids within the block's.
  __device__ void WarpRange(int64_t* begin, int64_t* end) const {
    const int64_t part = RoundUp((end_ - begin_ + kSelectWarps - 1) / kSelectWarps);
    *begin = min(begin_ + threadIdx.x / kWarp * part, end_);
    *end = min(*begin + part, end_);
  }

  // Sum of mass_of over the kept tokens of the block; those of each warp are left in memory_.all.
  template <class MassOf>
  __device__ uint64_t BlockMass(const MassOf& mass_of) {
    int64_t begin, end;
    WarpRange(&begin, &end);
    uint64_t mass = 0;
    for (int64_t i = begin + threadIdx.x % kWarp; i < end; i += kWarp) {
      const uint64_t key = Kept(i);
      if (key != kNoKey) mass += mass_of(key);
    }
    mass = ReduceWarp(mass, Plus());
    if (threadIdx.x % kWarp == 0) memory_.all[threadIdx.x / kWarp] = mass;
    __syncthreads();
    uint64_t sum = 0;
    for (int w = 0; w < kSelectWarps; ++w) sum += memory_.all[w];
    return sum;
  }

  // Sum over the blocks of the row; `ahead`: of those with lower ids.
  __device__ uint64_t SumOfRow(uint64_t mass, uint64_t& ahead) {
    const auto blocks = BlocksOfRow<kBlocks>();
    if (threadIdx.x == 0) published_.mass = mass;
    blocks.sync();
    uint64_t sum = 0;
    for (unsigned r = 0; r < kBlocks; ++r) {
      if (r == blocks.block_rank()) ahead = sum;
      sum += blocks.map_shared_rank(&published_, r)->mass;
    }
    blocks.sync();  // all have read
    return sum;
  }

  // The token at which the masses, in the order of ids, pass `target`. `ahead`: mass of lower
  // blocks; memory_.all: of this block's warps.
  template <class MassOf>
  __device__ int32_t Find(const MassOf& mass_of, uint64_t ahead, uint64_t target) const {
    const int warp = threadIdx.x / kWarp;
    const int lane = threadIdx.x % kWarp;
    for (int w = 0; w < warp; ++w) ahead += memory_.all[w];
    if (target < ahead || target >= ahead + memory_.all[warp]) return -1;
    int64_t begin, end;
    WarpRange(&begin, &end);
    int32_t found = -1;
    for (int64_t base = begin; base < end; base += kWarp) {
      const uint64_t key = base + lane < end ? Kept(base + lane) : kNoKey;
      const uint64_t mass = key == kNoKey ? 0 : mass_of(key);
      uint64_t until = mass;
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const uint64_t other = __shfl_up_sync(kAllLanes, until, offset);
        if (lane >= offset) until += other;
      }
      until += ahead;
      if (until > target && until - mass <= target) found = TokenOf(key);
      ahead = __shfl_sync(kAllLanes, until, kWarp - 1);
      if (ahead > target) break;  // one of the lanes has it
    }
    return found;
  }

  const float* logits_;
  int64_t vocabulary_;
  SelectMemory& memory_;
  Published& published_;
  int64_t begin_;  // this block's ids
  int64_t end_;
  SoftmaxSums sums_;
  uint64_t best_;
  uint64_t limit_ = kNoKey - 1;  // keys up to it are kept
  float scale_ = 1;
};

// kBlocks > 1: only where the code that runs is for compute capability 9.0 or later.
template <int kBlocks>
__global__ void __cluster_dims__(kBlocks, 1, 1) __launch_bounds__(kSelectThreads)
    SampleKernel(SampledToken* out, const int32_t* first_row, const float* logits, int64_t stride,
                 int64_t vocabulary, const int32_t* lanes, const int32_t* positions,
                 const SamplingParams* params, int32_t* drawn) {
  __shared__ SelectMemory memory;
  __shared__ Published published;
  __shared__ SoftmaxSums warps[kSelectWarps];
  const int64_t row = blockIdx.x / kBlocks;
  RowSampler<kBlocks> sampler(logits + row * stride, vocabulary, memory, published);
  sampler.ReadRow(warps);
  const SoftmaxSums& sums = sampler.sums();
  const SamplingParams& rule = params[lanes[row]];
  const bool first = blockIdx.x % kBlocks == 0 && threadIdx.x == 0;
  const auto non_finite = static_cast<int32_t>(vocabulary - sums.finite);
  int32_t token = -1;
  if (sums.finite == 0) {
    if (first) out[*first_row + row] = {-1, 0.0f, non_finite};
  } else if (rule.temperature == 0) {
    if (first) token = sampler.best();
  } else {
    token = sampler.Draw(rule, positions[row]);
  }
  if (drawn != nullptr && sums.finite == 0 && first) drawn[lanes[row]] = 0;
  if (token >= 0) {
    if (drawn != nullptr) drawn[lanes[row]] = token;
    out[*first_row + row] = {token, LogProb(logits[row * stride + token], sums.LogSum()),
                             non_finite};
  }
  BlocksOfRow<kBlocks>().sync();  // no block ends while another reads its memory
}

}  // namespace

void Sample(Stream& s, SampledToken* out, const int32_t* first, TensorView logits,
            const int32_t* lanes, const int32_t* positions, const SamplingParams* params,
            int32_t* drawn) {
  if (logits.rows() == 0) return;
  const bool clusters = HasClusters(s);
  const auto kernel = clusters ? SampleKernel<kClusterBlocks> : SampleKernel<1>;
  const auto rows = static_cast<unsigned>(logits.rows());
  kernel<<<clusters ? rows * kClusterBlocks : rows, kSelectThreads, 0, Native(s)>>>(
      out, first, logits.as<float>(), logits.strides[0], logits.cols(), lanes, positions, params,
      drawn);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace keyline::cuda
