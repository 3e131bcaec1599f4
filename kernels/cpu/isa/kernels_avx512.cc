#include "kernels/cpu/isa/block_kernels.h"
#include "kernels/cpu/isa/lanes_avx512.h"
#include "kernels/cpu/isa/probe_kernels.h"
#include "kernels/cpu/isa/row_kernels.h"
#include "kernels/cpu/isa/tile_kernels.h"

namespace keyline {

using L = Avx512Lanes;

extern const KernelSet kAvx512Kernels = {
    .name = "avx512",
    .title = "AVX-512",
    .f32 = MakeTileKernels<L, F32Product<L>, 8, 3>(RowFormat::kF32),
    .bf16 = MakeTileKernels<L, WidenedBF16Product<L>, 8, 2>(RowFormat::kF32Rounded),
    .q8 = MakeBlockKernels<Avx512Ints, Q8Weights, 8>(),
    .q4 = MakeBlockKernels<Avx512Ints, Q4Weights, 8>(),
    .prepare_row = PrepareRow<L>,
    .finish_row = FinishRow<L>,
    .max_finite = MaxFinite<L>,
    .sum_exp = SumExp<L>,
    .exp_row = ExpRow<L>,
    .read_blocks = ReadBlocks<L>,
    .multiply_f32 = MultiplyRounds<L, F32Product<L>>,
    .multiply_bf16 = MultiplyRounds<L, WidenedBF16Product<L>>,
};

}  // namespace keyline
