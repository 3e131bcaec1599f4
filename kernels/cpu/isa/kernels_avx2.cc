#include "kernels/cpu/isa/block_kernels.h"
#include "kernels/cpu/isa/lanes_avx2.h"
#include "kernels/cpu/isa/probe_kernels.h"
#include "kernels/cpu/isa/row_kernels.h"
#include "kernels/cpu/isa/tile_kernels.h"

namespace keyline {

using L = Avx2Lanes;

extern const KernelSet kAvx2Kernels = {
    .name = "avx2",
    .title = "AVX2",
    .f32 = MakeTileKernels<L, F32Product<L>, 6, 1>(RowFormat::kF32),
    .bf16 = MakeTileKernels<L, WidenedBF16Product<L>, 4, 1>(RowFormat::kF32Rounded),
    .q8 = MakeBlockKernels<Avx2Ints, Q8Weights, 4>(),
    .q4 = MakeBlockKernels<Avx2Ints, Q4Weights, 4>(),
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
