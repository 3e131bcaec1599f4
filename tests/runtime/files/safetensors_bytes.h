// Safetensors files made by hand, sound or not.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

namespace keyline {

// The eight bytes of a number, little endian.
inline std::string Le64(uint64_t n) {
  std::string bytes(sizeof(n), '\0');
  std::memcpy(bytes.data(), &n, sizeof(n));
  return bytes;
}

inline std::string SafetensorsBytes(const std::string& header, const std::string& data) {
  return Le64(header.size()) + header + data;
}

// As much data as `bytes` says, whatever it holds.
inline std::string SafetensorsBytes(const std::string& header, size_t bytes) {
  return SafetensorsBytes(header, std::string(bytes, '\1'));
}

}  // namespace keyline
