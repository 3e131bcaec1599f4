#include "runtime/files/safetensors/safetensors_header.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/json_file.h"
#include "runtime/files/quoted.h"

namespace keyline {
namespace {

// Element types that the format knows.
struct ElementType {
  std::string_view name;
  uint64_t bytes;
  std::optional<DType> dtype;
};
constexpr ElementType kElementTypes[] = {
    {"BOOL", 1, std::nullopt},    {"U8", 1, DType::kU8},        {"I8", 1, DType::kI8},
    {"F8_E4M3", 1, std::nullopt}, {"F8_E5M2", 1, std::nullopt}, {"F8_E8M0", 1, std::nullopt},
    {"I16", 2, std::nullopt},     {"U16", 2, std::nullopt},     {"F16", 2, DType::kF16},
    {"BF16", 2, DType::kBF16},    {"I32", 4, DType::kI32},      {"U32", 4, std::nullopt},
    {"F32", 4, DType::kF32},      {"I64", 8, DType::kI64},      {"U64", 8, std::nullopt},
    {"F64", 8, std::nullopt},
};

const ElementType* FindElementType(std::string_view name) {
  for (const ElementType& type : kElementTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

// Hears the events of {"name": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, ...}. What
// does not fit ends the parse at once, so depth and counts need no limits of their own.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return Unexpected("null"); }
  bool boolean(bool value) override { return Unexpected(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override { return Unexpected(absl::StrCat(value)); }
  bool number_float(number_float_t /*value*/, const string_t& text) override {
    return Unexpected(text);
  }
  bool binary(binary_t& /*value*/) override { return Unexpected("binary"); }
  bool number_unsigned(number_unsigned_t value) override {
    if (level_ != Level::kNumbers ||
        value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Unexpected(absl::StrCat(value));
    }
    if (field_ == "shape") {
      if (entry_.shape.size() == kMaxTensorRank) {
        return Fail(absl::StrCat("shape has more than ", kMaxTensorRank, " dimensions"));
      }
      entry_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (offsets_ == 2) return Fail("data_offsets has more than two numbers");
    (offsets_++ == 0 ? entry_.begin : entry_.end) = value;
    return true;
  }

  bool string(string_t& value) override {
    if (level_ == Level::kMetadata) return true;
    if (level_ != Level::kTensor || field_ != "dtype") return Unexpected(Quoted(value));
    const ElementType* const type = FindElementType(value);
    if (type == nullptr) {
      std::vector<std::string> known;
      for (const ElementType& t : kElementTypes) known.emplace_back(t.name);
      return Fail(absl::StrCat("dtype ", Quoted(value), " is unknown; known are ",
                               absl::StrJoin(known, ", ")));
    }
    entry_.dtype_name = type->name;
    entry_.dtype = type->dtype;
    return true;
  }

  bool start_object(std::size_t /*elements*/) override {
    switch (level_) {
      case Level::kOutside:
        level_ = Level::kTop;
        return true;
      case Level::kTop:
        level_ = entry_.name == kMetadataKey ? Level::kMetadata : Level::kTensor;
        has_dtype_ = has_shape_ = has_offsets_ = false;
        return true;
      default:
        return Unexpected("an object");
    }
  }
  bool end_object() override {
    if (level_ == Level::kTop) {
      level_ = Level::kOutside;
      return true;
    }
    const bool tensor = level_ == Level::kTensor;
    level_ = Level::kTop;
    return !tensor || AddTensor();
  }

  bool start_array(std::size_t /*elements*/) override {
    if (level_ != Level::kTensor || (field_ != "shape" && field_ != "data_offsets")) {
      return Unexpected("an array");
    }
    level_ = Level::kNumbers;
    return true;
  }
  bool end_array() override {
    level_ = Level::kTensor;
    return true;
  }

  bool key(string_t& name) override {
    if (level_ == Level::kTop) {
      entry_ = {};
      offsets_ = 0;
      entry_.name = std::move(name);
      if (entry_.name.size() > kMaxTensorNameBytes) {
        return Fail(absl::StrCat("its name has ", entry_.name.size(), " bytes, at most ",
                                 kMaxTensorNameBytes, " are allowed"));
      }
      if (entry_.name.find('\0') != std::string::npos) return Fail("its name contains NUL");
      if (entry_.name == kMetadataKey && std::exchange(metadata_seen_, true)) {
        return Fail("stands twice in the header");
      }
      return true;
    }
    field_ = std::move(name);
    bool twice = false;
    if (level_ == Level::kMetadata) {
      twice = !metadata_keys_.insert(field_).second;
    } else if (field_ == "dtype") {
      twice = std::exchange(has_dtype_, true);
    } else if (field_ == "shape") {
      twice = std::exchange(has_shape_, true);
    } else if (field_ == "data_offsets") {
      twice = std::exchange(has_offsets_, true);
    } else {
      return Fail(absl::StrCat("field ", Quoted(field_),
                               " is unknown; known are dtype, shape, data_offsets"));
    }
    return !twice || Fail(absl::StrCat("field ", Quoted(field_), " stands twice"));
  }

  bool parse_error(std::size_t position, const std::string& last_token,
                   const nlohmann::detail::exception& error) override {
    error_ = absl::StrCat("header is ", DescribeJsonError(position, last_token, error));
    return false;
  }

  const std::string& error() const { return error_; }
  std::vector<SafetensorsEntry> Take() { return std::move(entries_); }

 private:
  static constexpr std::string_view kMetadataKey = "__metadata__";
  enum class Level { kOutside, kTop, kMetadata, kTensor, kNumbers };

  bool Fail(const std::string& what) {
    error_ = entry_.name == kMetadataKey ? absl::StrCat("__metadata__: ", what)
                                         : absl::StrCat("tensor ", Quoted(entry_.name), ": ", what);
    return false;
  }
  bool Unexpected(const std::string& got) {
    switch (level_) {
      case Level::kOutside:
        error_ = absl::StrCat("header must be a JSON object, got ", got);
        return false;
      case Level::kTop:
        return Fail(absl::StrCat("must be an object, got ", got));
      case Level::kMetadata:
        return Fail(absl::StrCat("value of ", Quoted(field_), " must be a string, got ", got));
      case Level::kTensor:
        return Fail(absl::StrCat(
            field_, field_ == "dtype" ? " must be a string, got " : " must be an array, got ",
            got));
      case Level::kNumbers:
        return Fail(absl::StrCat(field_, " must hold integers from 0 to 2^63 - 1, got ", got));
    }
    return false;
  }

  // The tensor is complete: fields there, size as its shape says.
  bool AddTensor() {
    if (!has_dtype_) return Fail("has no dtype");
    if (!has_shape_) return Fail("has no shape");
    if (!has_offsets_) return Fail("has no data_offsets");
    if (offsets_ != 2) return Fail("data_offsets must hold two numbers");
    if (entry_.begin > entry_.end) {
      return Fail(
          absl::StrCat("data_offsets [", entry_.begin, ", ", entry_.end, "] run backwards"));
    }
    int64_t bytes = static_cast<int64_t>(FindElementType(entry_.dtype_name)->bytes);
    for (const int64_t n : entry_.shape) {
      if (__builtin_mul_overflow(bytes, n, &bytes)) {
        return Fail(absl::StrCat("size of shape [", absl::StrJoin(entry_.shape, ", "),
                                 "] does not fit in 63 bits"));
      }
    }
    if (entry_.end - entry_.begin != static_cast<uint64_t>(bytes)) {
      return Fail(absl::StrCat("shape [", absl::StrJoin(entry_.shape, ", "), "] of ",
                               std::string(entry_.dtype_name), " takes ", bytes,
                               " bytes, data_offsets [", entry_.begin, ", ", entry_.end, "] hold ",
                               entry_.end - entry_.begin));
    }
    entries_.push_back(std::move(entry_));
    return true;
  }

  Level level_ = Level::kOutside;
  SafetensorsEntry entry_;  // being read; its name is set from its key on
  std::string field_;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
  int offsets_ = 0;
  bool metadata_seen_ = false;
  std::set<std::string> metadata_keys_;
  std::vector<SafetensorsEntry> entries_;
  std::string error_;
};

absl::Status CheckNames(const std::vector<SafetensorsEntry>& entries, const std::string& path) {
  std::vector<std::string_view> names;
  names.reserve(entries.size());
  for (const SafetensorsEntry& entry : entries) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice == names.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": tensor ", Quoted(*twice), ": stands twice in the header"));
}

// In order of their data the tensors follow each other from the first byte to the last.
absl::Status CheckTiling(const std::vector<SafetensorsEntry>& entries, uint64_t data_bytes,
                         const std::string& path) {
  uint64_t done = 0;
  const SafetensorsEntry* before = nullptr;
  for (const SafetensorsEntry& entry : entries) {
    const std::string tensor = absl::StrCat(path, ": tensor ", Quoted(entry.name));
    if (entry.end > data_bytes) {
      return absl::DataLossError(absl::StrCat(tensor, ": ends at byte ", entry.end,
                                              " of the data, the file has only ", data_bytes,
                                              " there: it is cut short, or the header is wrong"));
    }
    if (entry.begin < done) {
      return absl::InvalidArgumentError(
          absl::StrCat(tensor, ": begins at byte ", entry.begin, " of the data, inside tensor ",
                       Quoted(before->name), ", which ends at ", done));
    }
    if (entry.begin > done) {
      return absl::InvalidArgumentError(
          absl::StrCat(tensor, ": begins at byte ", entry.begin,
                       " of the data; no tensor holds the bytes from ", done, " on"));
    }
    done = entry.end;
    before = &entry;
  }
  if (done == data_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": ", data_bytes - done, " bytes follow the last tensor",
                   before == nullptr ? "" : absl::StrCat(" ", Quoted(before->name)),
                   ", which ends at byte ", done, " of the data"));
}

}  // namespace

absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::string_view json,
                                                                     uint64_t data_bytes,
                                                                     const std::string& path) {
  // Counted before anything is parsed, which would take seconds. Names of real tensors have no
  // braces.
  const auto objects = std::count(json.begin(), json.end(), '{');
  if (objects > kMaxSafetensorsTensors + 2) {  // the header itself and the metadata
    return absl::InvalidArgumentError(absl::StrCat(path, ": header opens ", objects,
                                                   " objects; a file may have at most ",
                                                   kMaxSafetensorsTensors, " tensors"));
  }
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &reader)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", reader.error()));
  }
  std::vector<SafetensorsEntry> entries = reader.Take();
  RETURN_IF_ERROR(CheckNames(entries, path));
  // By end as well: empty tensors come before the one that begins where they do.
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  RETURN_IF_ERROR(CheckTiling(entries, data_bytes, path));
  return entries;
}

}  // namespace keyline
