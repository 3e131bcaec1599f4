// JSON from files that nobody vouches for: bounded in bytes, depth and number of values, without
// duplicate keys, UTF-8 whole. No exception leaves these functions.
//
// Errors are INVALID_ARGUMENT and name the file and the byte or the key at fault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace keyline {

struct JsonLimits {
  uint64_t max_bytes = 0;
  int max_depth = 64;
  int64_t max_values = 0;
  // \u0000 in a string. A vocabulary may hold it; a name may not.
  bool allow_nul = false;
};

inline constexpr JsonLimits kConfigJson = {.max_bytes = 1 << 20, .max_values = 100'000};
inline constexpr JsonLimits kTokenizerJson = {
    .max_bytes = 64 << 20, .max_values = 8'000'000, .allow_nul = true};

// `name` is for messages.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const std::string& name,
                                         const JsonLimits& limits);

// NOT_FOUND where there is no such file.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path, const JsonLimits& limits);

// What the parse_error event of a SAX handler of ours says: "not valid JSON at byte 12: ...".
std::string DescribeJsonError(size_t position, const std::string& last_token,
                              const nlohmann::detail::exception& error);

}  // namespace keyline
