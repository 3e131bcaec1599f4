#include "runtime/text/formats/hugging_face/json_fields.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace keyline {
namespace {

using nlohmann::json;

absl::Status WrongType(const std::string& where, const char* key, const char* wanted,
                       const json& value) {
  return absl::InvalidArgumentError(
      absl::StrCat(where, ".", key, " is a ", value.type_name(), ", not a ", wanted));
}

}  // namespace

const json* FindField(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

absl::StatusOr<std::string> TextField(const json& object, const char* key,
                                      const std::string& where) {
  const json* value = FindField(object, key);
  if (value == nullptr)
    return absl::InvalidArgumentError(absl::StrCat(where, ".", key, " is missing"));
  if (!value->is_string()) return WrongType(where, key, "string", *value);
  return value->get_ref<const std::string&>();
}

absl::StatusOr<std::string> TextFieldOr(const json& object, const char* key, std::string fallback,
                                        const std::string& where) {
  if (FindField(object, key) == nullptr) return fallback;
  return TextField(object, key, where);
}

absl::StatusOr<bool> FlagFieldOr(const json& object, const char* key, bool fallback,
                                 const std::string& where) {
  const json* value = FindField(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) return WrongType(where, key, "boolean", *value);
  return value->get<bool>();
}

absl::StatusOr<int32_t> ToTokenId(const json& value, const std::string& where) {
  // Unsigned is what the parser makes of every integer that is not negative.
  if (!value.is_number_unsigned() ||
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, " is ", value.is_number() ? value.dump() : std::string(value.type_name()),
        ", not a token id"));
  }
  return value.get<int32_t>();
}

absl::StatusOr<std::vector<const json*>> ListField(const json& object, const char* key,
                                                   const std::string& where) {
  std::vector<const json*> members;
  const json* value = FindField(object, key);
  if (value == nullptr) return members;
  if (!value->is_array()) return WrongType(where, key, "list", *value);
  for (const json& member : *value) members.push_back(&member);
  return members;
}

}  // namespace keyline
