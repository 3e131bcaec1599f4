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
#include <utility>
#include <vector>

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

// Builds a document from the parser's events while the limits hold (the library's own builder knows
// no limits and lets the last of two equal keys win). For ParseJson, and for readers that keep a
// large part of a file in a form of their own: they override the events of that part. Each event
// returns whether parsing goes on.
class JsonBuilder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit JsonBuilder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return Add(nullptr) != nullptr; }
  bool boolean(bool value) override { return Add(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return Add(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return Add(value) != nullptr; }
  bool number_float(number_float_t value, const string_t& /*text*/) override {
    return Add(value) != nullptr;
  }
  bool string(string_t& value) override;
  bool binary(binary_t& /*value*/) override { return Fail("binary values are not JSON"); }
  bool start_object(std::size_t /*elements*/) override { return Open(nlohmann::json::object()); }
  bool start_array(std::size_t /*elements*/) override { return Open(nlohmann::json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(string_t& name) override;
  bool parse_error(std::size_t position, const std::string& last_token,
                   const nlohmann::detail::exception& error) override;

  nlohmann::json Take() { return std::move(document_); }
  const std::string& error() const { return error_; }

 protected:
  bool Fail(std::string error);  // false
  bool CountValue();             // false, and failed, beyond max_values
  int depth() const { return static_cast<int>(open_.size()); }

 private:
  bool CheckText(const std::string& text);
  nlohmann::json* Add(nlohmann::json value);
  bool Open(nlohmann::json container);
  bool Close();

  const JsonLimits limits_;
  nlohmann::json document_;
  std::vector<nlohmann::json*> open_;  // containers from the outermost in
  nlohmann::json* member_ = nullptr;   // of the innermost object: what its last key stands for
  int64_t values_ = 0;
  std::string error_;
};

// What the parse_error event of a SAX handler of ours says: "not valid JSON at byte 12: ...".
std::string DescribeJsonError(size_t position, const std::string& last_token,
                              const nlohmann::detail::exception& error);

}  // namespace keyline
