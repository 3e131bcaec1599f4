// The row kernels of a KernelSet, over any kind of 16 lanes (lanes_scalar.h). Included only by
// kernels_<isa>.cc.
//
// Element i of a row is lane i % 16 of block i / 16 and the last block is masked, so an element
// goes through the same operations wherever it stands; sums over a row fold the lanes in a fixed
// order.
#pragma once

#include "kernels/cpu/isa/kernel_set.h"

namespace keyline {
namespace {

constexpr float kInfinity = __builtin_huge_valf();

// e^x to about one unit in the last place; 0 and infinity beyond the range of float; NaN stays NaN.
template <class L>
typename L::V Exp(typename L::V x) {
  using V = typename L::V;
  x = L::Max(L::Set(-105.0f), L::Min(L::Set(89.0f), x));
  const V n = L::Round(L::Mul(x, L::Set(1.44269504f)));
  V r = L::MulAdd(n, L::Set(-0.693145752f), x);  // ln 2 in two parts
  r = L::MulAdd(n, L::Set(-1.42860677e-6f), r);
  V p = L::Set(1.0f / 5040);
  p = L::MulAdd(p, r, L::Set(1.0f / 720));
  p = L::MulAdd(p, r, L::Set(1.0f / 120));
  p = L::MulAdd(p, r, L::Set(1.0f / 24));
  p = L::MulAdd(p, r, L::Set(1.0f / 6));
  p = L::MulAdd(p, r, L::Set(0.5f));
  p = L::MulAdd(L::Mul(p, r), r, r);
  return L::Scale(L::Add(p, L::Set(1.0f)), n);
}

// x / (1 + e^-z): with z = x the SiLU, with z = 2 u the tanh form of the GELU.
template <class L>
typename L::V TimesSigmoid(typename L::V x, typename L::V z) {
  const typename L::V one = L::Set(1.0f);
  return L::Div(x, L::Add(one, Exp<L>(L::Sub(L::Set(0.0f), z))));
}

template <class L>
typename L::V Gate(Finish finish, typename L::V x) {
  using V = typename L::V;
  if (finish == Finish::kSiluGate) return TimesSigmoid<L>(x, x);
  if (finish == Finish::kGeluTanhGate) {
    // 0.5 x (1 + tanh u) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
    const V cubic = L::MulAdd(L::Mul(L::Mul(x, x), x), L::Set(0.044715f), x);
    return TimesSigmoid<L>(x, L::Mul(cubic, L::Set(1.59576912f)));
  }
  float lane[kLanes];
  L::Store(lane, x);
  for (float& v : lane) v = 0.5f * v * __builtin_erfcf(v * -0.707106781f);
  return L::Load(lane);
}

template <class L>
void FinishRow(const FinishArgs& args) {
  using V = typename L::V;
  for (int i = 0; i < args.count; i += kLanes) {
    const int n = args.count - i < kLanes ? args.count - i : kLanes;
    V value = L::Load(args.sums + i);
    if (args.bias != nullptr) value = L::Add(value, L::LoadFirst(args.bias + i, n));
    if (args.finish == Finish::kAdd) {
      value = L::Add(L::LoadFirst(args.out + i, n), value);
    } else if (args.finish != Finish::kStore) {
      V up = L::Load(args.up_sums + i);
      if (args.up_bias != nullptr) up = L::Add(up, L::LoadFirst(args.up_bias + i, n));
      value = L::Mul(Gate<L>(args.finish, value), up);
    }
    L::StoreFirst(args.out + i, value, n);
  }
}

// Sum of the lanes, folded in halves.
template <class L>
float SumLanes(typename L::V v) {
  float lane[kLanes];
  L::Store(lane, v);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

// What the RMS norm of a row multiplies its elements by, before its weights.
template <class L>
typename L::V InverseRms(const float* in, int64_t n, float eps) {
  using V = typename L::V;
  V squares = L::Set(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const V x = L::LoadFirst(in + i, n - i < kLanes ? static_cast<int>(n - i) : kLanes);
    squares = L::MulAdd(x, x, squares);
  }
  const float mean = SumLanes<L>(squares) / static_cast<float>(n);
  return L::Set(1.0f / __builtin_sqrtf(mean + eps));
}

// One block of a row as integers. An element is off by at most half a scale, 1/254 of the block's
// largest. A number that is not finite makes its block NaN.
template <class L>
void QuantizeBlock(RowBlock& out, typename L::V first, typename L::V second) {
  using V = typename L::V;
  // Below it the reciprocal might overflow, and nothing is lost by calling it zero.
  constexpr float kLeast = 0x1p-100f;
  const V zero = L::Set(0.0f);
  const V largest_of =
      L::Max(L::Max(first, L::Sub(zero, first)), L::Max(second, L::Sub(zero, second)));
  float lane[kBlockInputs];
  L::Store(lane, largest_of);
  float largest = lane[0];
  for (int i = 1; i < kLanes; ++i) largest = lane[i] > largest ? lane[i] : largest;
  const bool finite = L::CountFinite(first) + L::CountFinite(second) == kBlockInputs;
  const bool nonzero = finite && largest >= kLeast;
  const V inverse = L::Set(nonzero ? 127.0f / largest : 0.0f);
  out.scale = finite ? (nonzero ? largest / 127.0f : 0.0f) : __builtin_nanf("");
  out.sum = 0;
  L::Store(lane, L::Round(L::Mul(L::IfFinite(first, first, zero), inverse)));
  L::Store(lane + kLanes, L::Round(L::Mul(L::IfFinite(second, second, zero), inverse)));
  for (int i = 0; i < kBlockInputs; ++i) {
    const int code = static_cast<int>(lane[i]);
    out.codes[i] = static_cast<int8_t>(code);
    out.sum += code;
  }
  out.scaled_sum = out.scale * static_cast<float>(out.sum);
}

template <class L>
void PrepareBlocks(RowBlock* out, const float* in, int64_t n, const float* weight, float eps) {
  using V = typename L::V;
  const V scale = weight == nullptr ? L::Set(1.0f) : InverseRms<L>(in, n, eps);
  const auto load = [&](int64_t i) {
    if (i >= n) return L::Set(0.0f);
    const int count = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    const V x = L::LoadFirst(in + i, count);
    if (weight == nullptr) return x;
    return L::Mul(L::Mul(x, scale), L::LoadFirst(weight + i, count));
  };
  for (int64_t i = 0; i < n; i += kBlockInputs) {
    QuantizeBlock<L>(*out++, load(i), load(i + kLanes));
  }
}

template <class L>
void PrepareRow(RowFormat format, void* out, const float* in, int64_t n, const float* weight,
                float eps) {
  using V = typename L::V;
  if (format == RowFormat::kInt8Blocks) {
    return PrepareBlocks<L>(static_cast<RowBlock*>(out), in, n, weight, eps);
  }
  const V scale = weight == nullptr ? L::Set(1.0f) : InverseRms<L>(in, n, eps);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    V x = L::LoadFirst(in + i, count);
    if (weight != nullptr) x = L::Mul(L::Mul(x, scale), L::LoadFirst(weight + i, count));
    // The lanes past the end are zero: the pad of a row with an odd number of elements.
    const int padded = count + (format == RowFormat::kF32 ? 0 : count % 2);
    if (format == RowFormat::kF32) {
      L::StoreFirst(static_cast<float*>(out) + i, x, padded);
    } else if (format == RowFormat::kF32Rounded) {
      L::StoreFirst(static_cast<float*>(out) + i, L::RoundToBF16(x), padded);
    } else {
      float lane[kLanes];
      L::Store(lane, L::RoundToBF16(x));
      uint16_t* bf16 = static_cast<uint16_t*>(out) + i;
      for (int j = 0; j < padded; ++j) {
        bf16[j] = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, lane[j]) >> 16);
      }
    }
  }
}

template <class L>
float MaxFinite(const float* in, int64_t n, int64_t* non_finite) {
  using V = typename L::V;
  const V lowest = L::Set(-kInfinity);
  V largest = lowest;
  int64_t finite = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    V x = L::LoadFirst(in + i, count);
    finite += L::CountFinite(x);
    x = L::IfFinite(x, x, lowest);
    if (count < kLanes) {  // the lanes past the end are zero, which might be the largest
      float lane[kLanes];
      L::Store(lane, x);
      for (int j = count; j < kLanes; ++j) lane[j] = -kInfinity;
      x = L::Load(lane);
      finite -= kLanes - count;
    }
    largest = L::Max(largest, x);
  }
  float lane[kLanes];
  L::Store(lane, largest);
  float result = lane[0];
  for (int j = 1; j < kLanes; ++j) result = lane[j] > result ? lane[j] : result;
  *non_finite = n - finite;
  return result;
}

template <class L>
typename L::V ExpOfFinite(typename L::V x, typename L::V max, typename L::V scale) {
  return L::IfFinite(x, Exp<L>(L::Mul(L::Sub(x, max), scale)), L::Set(0.0f));
}

// Blocks of 1,024 elements are summed in float, the blocks in double.
template <class L>
double SumExp(const float* in, int64_t n, float max, float scale) {
  using V = typename L::V;
  constexpr int64_t kBlock = 1024;
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = n - begin < kBlock ? n : begin + kBlock;
    V block = L::Set(0.0f);
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      block = L::Add(block, ExpOfFinite<L>(L::Load(in + i), L::Set(max), L::Set(scale)));
    }
    sum += static_cast<double>(SumLanes<L>(block));
    if (i < end) {
      float lane[kLanes];
      L::Store(lane, ExpOfFinite<L>(L::LoadFirst(in + i, static_cast<int>(end - i)), L::Set(max),
                                    L::Set(scale)));
      for (int64_t j = 0; j < end - i; ++j) sum += static_cast<double>(lane[j]);
    }
  }
  return sum;
}

template <class L>
void ExpRow(float* out, const float* in, int64_t n, float max, float scale) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    L::StoreFirst(out + i, ExpOfFinite<L>(L::LoadFirst(in + i, count), L::Set(max), L::Set(scale)),
                  count);
  }
}

}  // namespace
}  // namespace keyline
