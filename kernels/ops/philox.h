// Philox4x32-10 (Salmon et al., 2011): random numbers as a function of a key and a counter, so that
// a draw is the same on every device, for every number of ranks and whatever else is in the batch.
//
// constexpr, for CUDA kernels too (nvcc --expt-relaxed-constexpr).
#pragma once

#include <cstdint>

namespace keyline {

struct PhiloxWords {
  uint32_t word[4];
};

constexpr PhiloxWords Philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Uniform in [0, 1): the draw that decides the token at `position` of `sequence`. 53 bits.
constexpr double SamplingDraw(uint64_t seed, uint64_t sequence, uint32_t position) {
  const PhiloxWords words = Philox4x32(
      {{position, 0, static_cast<uint32_t>(sequence), static_cast<uint32_t>(sequence >> 32)}},
      static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const uint64_t bits = (uint64_t{words.word[1]} << 32 | words.word[0]) >> 11;
  return static_cast<double>(bits) * (1.0 / 9007199254740992.0);
}

}  // namespace keyline
