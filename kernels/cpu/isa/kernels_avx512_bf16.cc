#include "kernels/cpu/isa/block_kernels.h"
#include "kernels/cpu/isa/lanes_avx512.h"
#include "kernels/cpu/isa/probe_kernels.h"
#include "kernels/cpu/isa/row_kernels.h"
#include "kernels/cpu/isa/tile_kernels.h"

namespace keyline {

using L = Avx512Lanes;

namespace {

// bf16 weights: two k a step in one instruction, which adds the second product first.
struct NativeBF16Product {
  static constexpr int64_t kRowStep = 4;
  using W = __m512bh;
  using A = __m512bh;
  static W LoadWeights(const std::byte* w) { return Pairs(_mm512_loadu_si512(w)); }
  static A LoadRow(const std::byte* a) {
    return Pairs(_mm512_set1_epi32(*reinterpret_cast<const int32_t*>(a)));
  }
  static __m512 MulAdd(A a, W w, __m512 sum) { return _mm512_dpbf16_ps(sum, w, a); }

 private:
  static __m512bh Pairs(__m512i bits) { return reinterpret_cast<__m512bh>(bits); }
};

// Four products of bytes a lane in one instruction, straight into 32 bits (VNNI). Every processor
// with products of bf16 has it.
struct VnniInts : Avx512Ints {
  struct Sum {
    __m512i lanes;  // 16 of 32 bits
  };
  using SignedSum = Sum;
  using NibbleSum = Sum;
  // The instruction takes unsigned bytes times signed ones: weights are shifted by 128, and the
  // sum begins with what that makes too much.
  static Signed LoadSigned(const int8_t* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128));
  }
  static SignedSum SignedZero(int32_t row_sum) { return {_mm512_set1_epi32(-128 * row_sum)}; }
  static NibbleSum NibbleZero() { return {_mm512_setzero_si512()}; }
  static Sum DotSigned(Sum sum, Bytes w, const int8_t* a) { return DotNibbles(sum, w, a); }
  static Sum DotNibbles(Sum sum, Bytes w, const int8_t* a) {
    return {_mm512_dpbusd_epi32(sum.lanes, w, Broadcast(a))};
  }
  static F ToFloat(Sum sum) { return _mm512_cvtepi32_ps(sum.lanes); }
};

}  // namespace

extern const KernelSet kAvx512BF16Kernels = {
    .name = "avx512_bf16",
    .title = "AVX-512 BF16",
    .f32 = MakeTileKernels<L, F32Product<L>, 8, 3>(RowFormat::kF32),
    .bf16 = MakeTileKernels<L, NativeBF16Product, 8, 3>(RowFormat::kBF16Pairs),
    .q8 = MakeBlockKernels<VnniInts, Q8Weights, 8>(),
    .q4 = MakeBlockKernels<VnniInts, Q4Weights, 8>(),
    .prepare_row = PrepareRow<L>,
    .finish_row = FinishRow<L>,
    .max_finite = MaxFinite<L>,
    .sum_exp = SumExp<L>,
    .exp_row = ExpRow<L>,
    .read_blocks = ReadBlocks<L>,
    .multiply_f32 = MultiplyRounds<L, F32Product<L>>,
    .multiply_bf16 = MultiplyRounds<L, NativeBF16Product>,
};

}  // namespace keyline
