#include "kernels/cpu/attention/segment_kernels.h"
#include "kernels/cpu/isa/lanes_avx512.h"

namespace keyline {
namespace {

struct Lanes : Avx512Lanes {
  static constexpr int kAccumulators = 24;  // of 32 registers

  static V LoadBF16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(Load256(p)), 16));
  }
  static V LoadF16(const uint16_t* p) { return _mm512_cvtph_ps(Load256(p)); }
  static V LoadBytes(const uint8_t* p) { return Floats(Load128(p)); }
  static V LoadNibbles(const uint8_t* p, int shift) {
    return Floats(
        _mm_and_si128(_mm_srl_epi16(Load128(p), _mm_cvtsi32_si128(shift)), _mm_set1_epi8(15)));
  }
  static V LoadNibblePairs(const uint8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i both = _mm_unpacklo_epi64(_mm_srli_epi16(bytes, 4), bytes);
    return Floats(_mm_and_si128(both, _mm_set1_epi8(15)));
  }
  static V IfWithin(const int32_t* position, int32_t low, int32_t high, V v, V other) {
    const __m512i x = _mm512_loadu_si512(position);
    const __mmask16 above = _mm512_cmpgt_epi32_mask(x, _mm512_set1_epi32(low));
    const __mmask16 within = _mm512_mask_cmple_epi32_mask(above, x, _mm512_set1_epi32(high));
    return _mm512_mask_blend_ps(within, other, v);
  }

 private:
  static __m128i Load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m256i Load256(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static V Floats(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)); }
};

}  // namespace

extern const AttentionKernels kAvx512Attention = MakeAttentionKernels<Lanes>();

}  // namespace keyline
