// KernelSet: the inner loops of the CPU in one instruction set. KernelSets() lists those that this
// machine can run, best first.
//
// Each kernels_<isa>.cc fills one in from the same templates (tile_kernels.h, row_kernels.h) over
// its own 16 lanes. Sums run in an order that depends on neither the number of rows nor the number
// of threads, and all sets but the one with native bf16 products give the same bits.
// This header is included by files compiled for one instruction set, whose inline functions must
// not reach the rest of the program: plain data only, no standard containers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace keyline {

constexpr int kLanes = 16;          // outputs of one tile of weights
constexpr int kMaxTileRows = 8;     // rows of activations that one tile kernel takes at most
constexpr int kMaxTileColumns = 3;  // tiles of weights that one tile kernel takes at most
constexpr int kProbeChains = 12;

// How rows of activations are laid out for tile kernels.
enum class RowFormat : uint8_t {
  kF32,         // floats
  kF32Rounded,  // floats rounded to bf16, an even number of them
  kBF16Pairs,   // bf16, an even number of them
  kInt8Blocks,  // RowBlocks of 32, the last one filled up with zeros
};

// How packed weights (kernels/ops/weight_blocks.h) and the rows that meet them lie: blocks of 32
// inputs, in groups of four, whose products one lane adds up.
constexpr int kBlockInputs = 32;
constexpr int kGroupInputs = 4;
constexpr int kBlockGroups = kBlockInputs / kGroupInputs;

// One block of each of 16 rows of weights. Scales and mins are half precision.
struct TileBlockQ8 {
  uint16_t scale[kLanes];
  int8_t codes[kBlockGroups][kLanes][kGroupInputs];
};
struct TileBlockQ4 {
  uint16_t scale[kLanes];
  uint16_t min[kLanes];
  // Low nibbles: group g; high nibbles: group g + 4.
  uint8_t codes[kBlockGroups / 2][kLanes][kGroupInputs];
};

// 32 activations: scale * code, the largest being 127 scales.
struct RowBlock {
  float scale;
  float scaled_sum;  // of the codes, times scale
  int32_t sum;       // of the codes
  int8_t codes[kBlockInputs];
};

// c[r][16 * t + lane] (+)= sum over k of a[r][k] * w[t][k][lane], one chain of fused multiply-adds
// for each output. Packed weights: a chain over blocks, whose own sums are of integers and exact.
struct TileArgs {
  const std::byte* a = nullptr;  // rows of activations
  int64_t a_stride = 0;          // bytes from row to row
  const std::byte* w = nullptr;  // first tile of weights, at this block's first step
  int64_t w_stride = 0;          // bytes from tile to tile
  int64_t steps = 0;             // one k (f32 weights), two (bf16) or 32 (packed)
  int64_t next_offset = 0;       // from the end of this block to the weights read next, in bytes
  float* c = nullptr;
  int64_t c_stride = 0;  // floats from row to row
  bool first = false;    // start from zero, not from c
};
using TileKernel = void (*)(const TileArgs&);

struct TileKernels {
  RowFormat row_format = RowFormat::kF32;
  // The block that keeps most of the arithmetic in registers; kernel[r][t] is there for r <= rows
  // and t <= columns.
  int rows = 0;
  int columns = 0;
  TileKernel kernel[kMaxTileRows + 1][kMaxTileColumns + 1] = {};
};

// What becomes of a finished row of sums: out = sums + bias; out += sums + bias; or, gated,
// out = gate(sums + bias) * (up_sums + up_bias).
enum class Finish : uint8_t { kStore, kAdd, kSiluGate, kGeluTanhGate, kGeluGate };

struct FinishArgs {
  Finish finish = Finish::kStore;
  float* out = nullptr;
  const float* sums = nullptr;
  const float* bias = nullptr;  // null = none
  const float* up_sums = nullptr;
  const float* up_bias = nullptr;
  int count = 0;
};

struct KernelSet {
  const char* name = "";   // "avx512_bf16": for tests and settings
  const char* title = "";  // "AVX-512 BF16": for people
  TileKernels f32;         // for float32 weights
  TileKernels bf16;        // for bf16 weights
  TileKernels q8;          // for packed weights: q8_0
  TileKernels q4;          // and q4_1

  // Writes a row of activations in `format`; where weight is not null, the RMS norm of the row.
  void (*prepare_row)(RowFormat format, void* out, const float* in, int64_t n, const float* weight,
                      float eps) = nullptr;
  void (*finish_row)(const FinishArgs&) = nullptr;

  // Largest finite element and how many are not finite; -inf where none is finite.
  float (*max_finite)(const float* in, int64_t n, int64_t* non_finite) = nullptr;
  // Sum of exp((x - max) * scale) over the finite elements.
  double (*sum_exp)(const float* in, int64_t n, float max, float scale) = nullptr;
  // out[i] = exp((in[i] - max) * scale), 0 where in[i] is not finite.
  void (*exp_row)(float* out, const float* in, int64_t n, float max, float scale) = nullptr;

  // Probes (probe_kernels.h): read n blocks of 64 bytes; run n steps of a tile kernel in each of
  // kProbeChains chains.
  float (*read_blocks)(const std::byte* from, int64_t n) = nullptr;
  float (*multiply_f32)(int64_t n) = nullptr;
  float (*multiply_bf16)(int64_t n) = nullptr;
};

// Null-terminated, best first; the last is always "scalar".
const KernelSet* const* KernelSets();

extern const KernelSet kAvx512BF16Kernels;
extern const KernelSet kAvx512Kernels;
extern const KernelSet kAvx2Kernels;
extern const KernelSet kScalarKernels;

}  // namespace keyline
