#include "runtime/files/json_file.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/input_file.h"
#include "runtime/files/quoted.h"

namespace keyline {

using nlohmann::json;

std::string DescribeJsonError(size_t position, const std::string& last_token,
                              const nlohmann::detail::exception& error) {
  constexpr int kNumberOverflow = 406;
  const size_t byte = position - 1;  // the library counts from one
  if (error.id == kNumberOverflow) {
    return absl::StrCat("not valid JSON at byte ", byte, ": number ", Quoted(last_token),
                        " is out of range");
  }
  // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error while ...; last
  // read: 'all of it'": the middle is worth telling.
  const std::string what = error.what();
  const size_t begin = what.find(": ");
  const size_t end = what.find("; last read");
  std::string reason = begin == std::string::npos ? what : what.substr(begin + 2, end - begin - 2);
  return absl::StrCat("not valid JSON at byte ", byte, ": ", reason);
}

bool JsonBuilder::string(string_t& value) {
  return CheckText(value) && Add(json(std::move(value))) != nullptr;
}

bool JsonBuilder::key(string_t& name) {
  if (!CheckText(name)) return false;
  const auto [at, fresh] = open_.back()->get_ref<json::object_t&>().emplace(name, nullptr);
  if (!fresh) return Fail(absl::StrCat("key ", Quoted(name), " stands twice in one object"));
  member_ = &at->second;
  return true;
}

bool JsonBuilder::parse_error(std::size_t position, const std::string& last_token,
                              const nlohmann::detail::exception& error) {
  return Fail(DescribeJsonError(position, last_token, error));
}

bool JsonBuilder::Fail(std::string error) {
  error_ = std::move(error);
  return false;
}

bool JsonBuilder::CheckText(const std::string& text) {
  if (limits_.allow_nul || text.find('\0') == std::string::npos) return true;
  return Fail(absl::StrCat("string ", Quoted(text), " contains NUL"));
}

bool JsonBuilder::CountValue() {
  if (++values_ <= limits_.max_values) return true;
  return Fail(absl::StrCat("has more than ", limits_.max_values, " values"));
}

json* JsonBuilder::Add(json value) {
  if (!CountValue()) return nullptr;
  if (open_.empty()) return &(document_ = std::move(value));
  if (open_.back()->is_object()) return &(*member_ = std::move(value));
  auto& elements = open_.back()->get_ref<json::array_t&>();
  return &elements.emplace_back(std::move(value));
}

bool JsonBuilder::Open(json container) {
  if (depth() >= limits_.max_depth) {
    return Fail(absl::StrCat("is nested deeper than ", limits_.max_depth));
  }
  json* const added = Add(std::move(container));
  if (added != nullptr) open_.push_back(added);
  return added != nullptr;
}

bool JsonBuilder::Close() {
  open_.pop_back();
  return true;
}

absl::StatusOr<json> ParseJson(std::string_view text, const std::string& name,
                               const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": has ", text.size(), " bytes, at most ",
                                                   limits.max_bytes, " are read"));
  }
  JsonBuilder builder(limits);
  if (!json::sax_parse(text.begin(), text.end(), &builder)) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": ", builder.error()));
  }
  return builder.Take();
}

absl::StatusOr<json> ReadJsonFile(const std::string& path, const JsonLimits& limits) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, limits.max_bytes));
  return ParseJson(text, path, limits);
}

}  // namespace keyline
