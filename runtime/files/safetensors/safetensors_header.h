// The JSON header of a .safetensors file, parsed and checked. Pure: text in, places out. For
// safetensors.h and the fuzzer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/dtype.h"

namespace keyline {

inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr int64_t kMaxSafetensorsTensors = 1'000'000;
inline constexpr size_t kMaxTensorNameBytes = 512;
inline constexpr size_t kMaxTensorRank = 8;

struct SafetensorsEntry {
  std::string name;
  std::string_view dtype_name;  // "BF16"; static storage
  std::optional<DType> dtype;   // empty: a type that the format knows and we do not read
  std::vector<int64_t> shape;   // outermost first
  uint64_t begin = 0;           // bytes within the data, which begins after the header
  uint64_t end = 0;
};

// `json`: the header's text, padding included; `data_bytes`: what follows it in the file. Entries
// come back in the order of their data. Errors: safetensors.h.
absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::string_view json,
                                                                     uint64_t data_bytes,
                                                                     const std::string& path);

}  // namespace keyline
