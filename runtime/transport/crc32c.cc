#include "runtime/transport/crc32c.h"

#include <array>
#include <cstring>

namespace keyline {
namespace {

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1) ? 0x82f63b78u : 0);
    table[i] = c;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kTable = MakeTable();

uint32_t ByTable(std::span<const std::byte> data, uint32_t crc) {
  for (std::byte b : data) crc = (crc >> 8) ^ kTable[(crc ^ static_cast<uint32_t>(b)) & 0xff];
  return crc;
}

#if defined(__x86_64__)
// The instruction takes three cycles but one can start in each, so that three lanes of the data run
// side by side. Joining them needs the CRC of a lane "moved on" over the bytes of the next one;
// that is linear in its bits: four tables, one for each byte of the CRC.
constexpr size_t kLaneBytes = 1024;

using MoveTables = std::array<std::array<uint32_t, 256>, 4>;

MoveTables MakeMoveTables() {
  const std::array<std::byte, kLaneBytes> zeros{};
  MoveTables tables{};
  for (int bit = 0; bit < 32; ++bit) {
    const uint32_t moved = ByTable(zeros, uint32_t{1} << bit);
    for (uint32_t i = 0; i < 256; ++i) {
      if (i >> (bit % 8) & 1) tables[bit / 8][i] ^= moved;
    }
  }
  return tables;
}

__attribute__((target("sse4.2"))) uint32_t ByInstruction(std::span<const std::byte> data,
                                                         uint32_t crc) {
  static const MoveTables tables = MakeMoveTables();
  const auto move = [](uint32_t c) {
    return tables[0][c & 0xff] ^ tables[1][c >> 8 & 0xff] ^ tables[2][c >> 16 & 0xff] ^
           tables[3][c >> 24];
  };
  const auto word = [&data](size_t offset) {
    uint64_t w;
    std::memcpy(&w, data.data() + offset, sizeof(w));
    return w;
  };
  while (data.size() >= 3 * kLaneBytes) {
    uint64_t a = crc;
    uint64_t b = 0;
    uint64_t c = 0;
    for (size_t i = 0; i < kLaneBytes; i += 8) {
      a = __builtin_ia32_crc32di(a, word(i));
      b = __builtin_ia32_crc32di(b, word(kLaneBytes + i));
      c = __builtin_ia32_crc32di(c, word(2 * kLaneBytes + i));
    }
    crc =
        move(move(static_cast<uint32_t>(a)) ^ static_cast<uint32_t>(b)) ^ static_cast<uint32_t>(c);
    data = data.subspan(3 * kLaneBytes);
  }
  uint64_t rest = crc;
  for (; data.size() >= 8; data = data.subspan(8)) rest = __builtin_ia32_crc32di(rest, word(0));
  return ByTable(data, static_cast<uint32_t>(rest));
}
#endif

}  // namespace

uint32_t Crc32c(std::span<const std::byte> data, uint32_t crc) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  if (has_instruction) return ~ByInstruction(data, ~crc);
#endif
  return ~ByTable(data, ~crc);
}

}  // namespace keyline
