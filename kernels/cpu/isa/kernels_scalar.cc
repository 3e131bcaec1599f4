#include "kernels/cpu/isa/block_kernels.h"
#include "kernels/cpu/isa/lanes_scalar.h"
#include "kernels/cpu/isa/probe_kernels.h"
#include "kernels/cpu/isa/row_kernels.h"
#include "kernels/cpu/isa/tile_kernels.h"

namespace keyline {

using L = ScalarLanes;

extern const KernelSet kScalarKernels = {
    .name = "scalar",
    .title = "scalar",
    .f32 = MakeTileKernels<L, F32Product<L>, 2, 2>(RowFormat::kF32),
    .bf16 = MakeTileKernels<L, WidenedBF16Product<L>, 2, 2>(RowFormat::kF32Rounded),
    .q8 = MakeBlockKernels<ScalarInts, Q8Weights, 2>(),
    .q4 = MakeBlockKernels<ScalarInts, Q4Weights, 2>(),
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
