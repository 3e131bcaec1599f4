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

}  // namespace

extern const KernelSet kAvx512BF16Kernels = {
    .name = "avx512_bf16",
    .title = "AVX-512 BF16",
    .f32 = MakeTileKernels<L, F32Product<L>, 8, 3>(RowFormat::kF32),
    .bf16 = MakeTileKernels<L, NativeBF16Product, 8, 3>(RowFormat::kBF16Pairs),
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
