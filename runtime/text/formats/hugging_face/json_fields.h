// Reading members of JSON objects whose types nobody vouches for. `where` names the object in
// messages: "tokenizer.json: pre_tokenizer".
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace keyline {

// Null where `object` is no object or has no such member, or it is null.
const nlohmann::json* FindField(const nlohmann::json& object, const char* key);

// INVALID_ARGUMENT where the member has another type; the first where it is missing, too.
absl::StatusOr<std::string> TextField(const nlohmann::json& object, const char* key,
                                      const std::string& where);
absl::StatusOr<std::string> TextFieldOr(const nlohmann::json& object, const char* key,
                                        std::string fallback, const std::string& where);
absl::StatusOr<bool> FlagFieldOr(const nlohmann::json& object, const char* key, bool fallback,
                                 const std::string& where);
absl::StatusOr<int32_t> ToTokenId(const nlohmann::json& value, const std::string& where);

// The members of a list under `key`; none where it is missing.
absl::StatusOr<std::vector<const nlohmann::json*>> ListField(const nlohmann::json& object,
                                                             const char* key,
                                                             const std::string& where);

}  // namespace keyline
