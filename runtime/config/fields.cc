#include "runtime/config/fields.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/quoted.h"

namespace keyline {
namespace {

using nlohmann::json;

std::optional<int64_t> AsInteger(const json& value) {
  if (value.is_number_unsigned()) {
    const auto n = value.get<uint64_t>();
    if (n > uint64_t{std::numeric_limits<int64_t>::max()}) return std::nullopt;
    return static_cast<int64_t>(n);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  return std::nullopt;
}

// Scalars as they are, containers by their kind: a message stays short.
std::string Describe(const json& value) {
  if (value.is_string()) return Quoted(value.get_ref<const std::string&>());
  if (value.is_object() || value.is_array()) return absl::StrCat("an ", value.type_name());
  return value.dump();
}

template <class T>
std::optional<T> ValueOf(absl::StatusOr<T> value) {
  if (!value.ok()) return std::nullopt;
  return *std::move(value);
}

}  // namespace

absl::Status Fields::Invalid(const std::string& key, const std::string& what) const {
  return absl::InvalidArgumentError(absl::StrCat(path_, ": ", FullName(key), " ", what));
}

absl::Status Fields::Unsupported(const std::string& key, const std::string& what) const {
  return absl::UnimplementedError(absl::StrCat(path_, ": ", FullName(key), " ", what));
}

absl::StatusOr<int64_t> Fields::Integer(const std::string& key, int64_t low, int64_t high,
                                        std::optional<int64_t> fallback) const {
  if (!Has(key)) {
    if (fallback.has_value()) return *fallback;
    return Invalid(key, "is missing");
  }
  const std::optional<int64_t> value = FindInteger(key);
  if (value.has_value() && *value >= low && *value <= high) return *value;
  return Invalid(key,
                 absl::StrCat("must be an integer from ", low, " to ", high, ", got ", Show(key)));
}

absl::StatusOr<double> Fields::Real(const std::string& key, double low, double high,
                                    std::optional<double> fallback) const {
  if (!Has(key)) {
    if (fallback.has_value()) return *fallback;
    return Invalid(key, "is missing");
  }
  const std::optional<double> value = FindReal(key);
  // A NaN fails both comparisons.
  if (value.has_value() && *value >= low && *value <= high) return *value;
  return Invalid(key,
                 absl::StrCat("must be a number from ", low, " to ", high, ", got ", Show(key)));
}

absl::StatusOr<bool> Fields::Boolean(const std::string& key, bool fallback) const {
  if (!Has(key)) return fallback;
  const std::optional<bool> value = FindBoolean(key);
  if (value.has_value()) return *value;
  return Invalid(key, absl::StrCat("must be true or false, got ", Show(key)));
}

absl::StatusOr<std::string> Fields::String(const std::string& key,
                                           std::optional<std::string> fallback) const {
  if (!Has(key)) {
    if (fallback.has_value()) return *std::move(fallback);
    return Invalid(key, "is missing");
  }
  std::optional<std::string> value = FindString(key);
  if (value.has_value()) return *std::move(value);
  return Invalid(key, absl::StrCat("must be a string, got ", Show(key)));
}

JsonFields::JsonFields(std::string path, const json& object, std::string prefix)
    : Fields(std::move(path)), object_(object), prefix_(std::move(prefix)) {}

const json* JsonFields::Find(const std::string& key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool JsonFields::IsNull(const std::string& key) const {
  const auto found = object_.find(key);
  return found != object_.end() && found->is_null();
}

bool JsonFields::Has(const std::string& key) const { return Find(key) != nullptr; }

std::optional<int64_t> JsonFields::FindInteger(const std::string& key) const {
  return AsInteger(*Find(key));
}

std::optional<double> JsonFields::FindReal(const std::string& key) const {
  const json& value = *Find(key);
  if (!value.is_number()) return std::nullopt;
  return value.get<double>();
}

std::optional<bool> JsonFields::FindBoolean(const std::string& key) const {
  const json& value = *Find(key);
  if (!value.is_boolean()) return std::nullopt;
  return value.get<bool>();
}

std::optional<std::string> JsonFields::FindString(const std::string& key) const {
  const json& value = *Find(key);
  if (!value.is_string()) return std::nullopt;
  return value.get<std::string>();
}

std::string JsonFields::Show(const std::string& key) const { return Describe(*Find(key)); }

absl::StatusOr<std::vector<int>> JsonFields::TokenIds(const std::string& key,
                                                      int vocab_size) const {
  std::vector<int> ids;
  const json* const value = Find(key);
  if (value == nullptr) return ids;
  const auto add = [&](const json& id) {
    const std::optional<int64_t> n = AsInteger(id);
    if (!n.has_value() || *n < 0 || *n >= vocab_size) {
      return Invalid(key, absl::StrCat("must be token ids from 0 to ", vocab_size - 1, ", got ",
                                       Describe(id)));
    }
    ids.push_back(static_cast<int>(*n));
    return absl::OkStatus();
  };
  if (!value->is_array()) {
    RETURN_IF_ERROR(add(*value));
    return ids;
  }
  for (const json& id : *value) RETURN_IF_ERROR(add(id));
  return ids;
}

GgufFields::GgufFields(const GgufFile& file, std::string prefix)
    : Fields(file.path()), file_(file), prefix_(std::move(prefix)) {}

bool GgufFields::Has(const std::string& key) const { return file_.Has(prefix_ + key); }

std::optional<int64_t> GgufFields::FindInteger(const std::string& key) const {
  return ValueOf(file_.Integer(prefix_ + key));
}

std::optional<double> GgufFields::FindReal(const std::string& key) const {
  return ValueOf(file_.Number(prefix_ + key));
}

std::optional<bool> GgufFields::FindBoolean(const std::string& key) const {
  return ValueOf(file_.Boolean(prefix_ + key));
}

std::optional<std::string> GgufFields::FindString(const std::string& key) const {
  const std::optional<std::string_view> view = ValueOf(file_.String(prefix_ + key));
  if (!view.has_value()) return std::nullopt;
  return std::string(*view);
}

std::string GgufFields::Show(const std::string& key) const {
  const std::string full = prefix_ + key;
  if (const auto n = file_.Integer(full); n.ok()) return absl::StrCat(*n);
  if (const auto n = file_.Number(full); n.ok()) return absl::StrCat(*n);
  if (const auto b = file_.Boolean(full); b.ok()) return *b ? "true" : "false";
  if (const auto s = file_.String(full); s.ok()) return Quoted(*s);
  return "an array";
}

}  // namespace keyline
