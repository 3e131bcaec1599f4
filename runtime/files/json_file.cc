#include "runtime/files/json_file.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/input_file.h"
#include "runtime/files/quoted.h"

namespace keyline {
namespace {

using nlohmann::json;

// Builds the document while the limits hold. The library's own builder knows no limits and lets the
// last of two equal keys win. Each event returns whether parsing goes on.
class LimitedBuilder : public nlohmann::json_sax<json> {
 public:
  explicit LimitedBuilder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return Add(json(nullptr)) != nullptr; }
  bool boolean(bool value) override { return Add(json(value)) != nullptr; }
  bool number_integer(number_integer_t value) override { return Add(json(value)) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return Add(json(value)) != nullptr; }
  bool number_float(number_float_t value, const string_t& /*text*/) override {
    return Add(json(value)) != nullptr;
  }
  bool string(string_t& value) override {
    return CheckText(value) && Add(json(std::move(value))) != nullptr;
  }
  bool binary(binary_t& /*value*/) override { return Fail("binary values are not JSON"); }
  bool start_object(std::size_t /*elements*/) override { return Open(json::object()); }
  bool start_array(std::size_t /*elements*/) override { return Open(json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(string_t& name) override {
    if (!CheckText(name)) return false;
    const auto [at, fresh] = open_.back()->get_ref<json::object_t&>().emplace(name, nullptr);
    if (!fresh) return Fail(absl::StrCat("key ", Quoted(name), " stands twice in one object"));
    member_ = &at->second;
    return true;
  }
  bool parse_error(std::size_t position, const std::string& last_token,
                   const nlohmann::detail::exception& error) override {
    return Fail(DescribeJsonError(position, last_token, error));
  }

  json Take() { return std::move(document_); }
  const std::string& error() const { return error_; }

 private:
  bool Fail(std::string error) {
    error_ = std::move(error);
    return false;
  }
  bool CheckText(const std::string& text) {
    if (limits_.allow_nul || text.find('\0') == std::string::npos) return true;
    return Fail(absl::StrCat("string ", Quoted(text), " contains NUL"));
  }
  json* Add(json value) {
    if (++values_ > limits_.max_values) {
      Fail(absl::StrCat("has more than ", limits_.max_values, " values"));
      return nullptr;
    }
    if (open_.empty()) return &(document_ = std::move(value));
    if (open_.back()->is_object()) return &(*member_ = std::move(value));
    auto& elements = open_.back()->get_ref<json::array_t&>();
    return &elements.emplace_back(std::move(value));
  }
  bool Open(json container) {
    if (static_cast<int>(open_.size()) >= limits_.max_depth) {
      return Fail(absl::StrCat("is nested deeper than ", limits_.max_depth));
    }
    json* const added = Add(std::move(container));
    if (added != nullptr) open_.push_back(added);
    return added != nullptr;
  }
  bool Close() {
    open_.pop_back();
    return true;
  }

  const JsonLimits limits_;
  json document_;
  std::vector<json*> open_;  // containers from the outermost in
  json* member_ = nullptr;   // of the innermost object: what its last key stands for
  int64_t values_ = 0;
  std::string error_;
};

}  // namespace

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

absl::StatusOr<json> ParseJson(std::string_view text, const std::string& name,
                               const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": has ", text.size(), " bytes, at most ",
                                                   limits.max_bytes, " are read"));
  }
  LimitedBuilder builder(limits);
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
