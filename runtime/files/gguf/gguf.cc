#include "runtime/files/gguf/gguf.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/gguf/gguf_names.h"
#include "runtime/files/quoted.h"

namespace keyline {
namespace {

// What stands before the weights; vocabularies of 256,000 tokens take 12 MB.
constexpr uint64_t kMaxHeaderBytes = 128 << 20;
constexpr uint64_t kFirstPrefixBytes = 4 << 20;

// A number at `from`, whatever its type, as T.
template <class T>
T Widen(GgufType type, const char* from) {
  const auto as = [from](auto value) {
    std::memcpy(&value, from, sizeof(value));
    return static_cast<T>(value);
  };
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kBool:
      return as(uint8_t{});
    case GgufType::kInt8:
      return as(int8_t{});
    case GgufType::kUint16:
      return as(uint16_t{});
    case GgufType::kInt16:
      return as(int16_t{});
    case GgufType::kUint32:
      return as(uint32_t{});
    case GgufType::kInt32:
      return as(int32_t{});
    case GgufType::kUint64:
      return as(uint64_t{});
    case GgufType::kInt64:
      return as(int64_t{});
    case GgufType::kFloat32:
      return as(float{});
    case GgufType::kFloat64:
      return as(double{});
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  return T{};
}

bool IsInteger(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kUint16:
    case GgufType::kInt16:
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kUint64:
    case GgufType::kInt64:
      return true;
    default:
      return false;
  }
}

bool IsNumber(GgufType type) {
  return IsInteger(type) || type == GgufType::kFloat32 || type == GgufType::kFloat64;
}

std::string Describe(const GgufValue& value) {
  return value.type == GgufType::kArray
             ? absl::StrCat("array of ", std::string(Name(value.element)))
             : std::string(Name(value.type));
}

}  // namespace

GgufFile::GgufFile(InputFile file, std::string bytes, GgufHeader header)
    : file_(std::move(file)), bytes_(std::move(bytes)), header_(std::move(header)) {}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(InputFile file, InputFile::Open(path));
  // Nothing tells how long the header is, so more is read until it is whole.
  std::string prefix;
  for (uint64_t wanted = kFirstPrefixBytes;; wanted *= 4) {
    const size_t had = prefix.size();
    prefix.resize(std::min({wanted, file.size(), kMaxHeaderBytes}));
    RETURN_IF_ERROR(file.Read(had, std::as_writable_bytes(std::span(prefix)).subspan(had)));
    absl::StatusOr<GgufHeader> header = ParseGgufHeader(prefix, file.size(), path);
    if (absl::IsOutOfRange(header.status())) {
      if (prefix.size() < kMaxHeaderBytes) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": metadata and list of tensors take more than ", kMaxHeaderBytes, " bytes"));
    }
    RETURN_IF_ERROR(header.status());
    prefix.resize(header->bytes);
    prefix.shrink_to_fit();
    std::unique_ptr<GgufFile> opened(
        new GgufFile(std::move(file), std::move(prefix), *std::move(header)));
    RETURN_IF_ERROR(opened->NameTensors());
    return opened;
  }
}

absl::Status GgufFile::NameTensors() {
  ASSIGN_OR_RETURN(const std::string_view architecture, String("general.architecture"));
  architecture_ = std::string(architecture);
  if (const auto parts = Integer("split.count"); parts.ok() && *parts > 1) {
    return absl::UnimplementedError(
        absl::StrCat(path(), ": is one of ", *parts,
                     " parts (split.count); join them with 'llama-gguf-split --merge'"));
  }
  for (GgufTensor& from : header_.tensors) {
    SourceTensor tensor{.dtype = from.dtype,
                        .shape = std::move(from.shape),
                        .bytes = from.bytes,
                        .file = &file_,
                        .file_offset = from.offset};
    const GgufRows rows = RowsOf(architecture_, from.name);
    if (rows != GgufRows::kPlain) {
      const std::string queries = architecture_ + ".attention.head_count";
      const std::string keys = queries + "_kv";
      ASSIGN_OR_RETURN(tensor.interleaved_heads,
                       Integer(rows == GgufRows::kKeyHeads && Has(keys) ? keys : queries));
      const int64_t outputs = tensor.shape.front();
      if (tensor.interleaved_heads < 1 || tensor.interleaved_heads > outputs ||
          outputs % (2 * tensor.interleaved_heads) != 0) {
        return absl::InvalidArgumentError(absl::StrCat(path(), ": tensor ", Quoted(from.name), ": ",
                                                       outputs, " rows are not pairs of ",
                                                       tensor.interleaved_heads, " heads"));
      }
    }
    const auto [at, fresh] = tensors_.emplace(HuggingFaceName(from.name), std::move(tensor));
    if (!fresh) {
      return absl::InvalidArgumentError(absl::StrCat(
          path(), ": tensor ", Quoted(from.name), ": stands twice, once as ", Quoted(at->first)));
    }
  }
  header_.tensors.clear();
  return absl::OkStatus();
}

bool GgufFile::Has(std::string_view key) const { return header_.values.contains(key); }

absl::StatusOr<const GgufValue*> GgufFile::Value(std::string_view key) const {
  const auto found = header_.values.find(key);
  if (found == header_.values.end()) {
    return absl::NotFoundError(absl::StrCat(path(), ": has no metadata ", Quoted(key)));
  }
  return &found->second;
}

absl::StatusOr<const GgufValue*> GgufFile::Array(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, Value(key));
  if (value->type != GgufType::kArray) return WrongType(key, *value, "an array");
  return value;
}

absl::Status GgufFile::WrongType(std::string_view key, const GgufValue& value,
                                 std::string_view wanted) const {
  return absl::InvalidArgumentError(absl::StrCat(path(), ": metadata ", Quoted(key), " must be ",
                                                 std::string(wanted), ", got ", Describe(value)));
}

absl::StatusOr<std::string_view> GgufFile::String(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, Value(key));
  if (value->type != GgufType::kString) return WrongType(key, *value, "a string");
  return std::string_view(bytes_).substr(value->offset, value->count);
}

absl::StatusOr<bool> GgufFile::Boolean(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, Value(key));
  if (value->type != GgufType::kBool) return WrongType(key, *value, "a bool");
  return bytes_[value->offset] != 0;
}

absl::StatusOr<int64_t> GgufFile::Integer(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, Value(key));
  if (!IsInteger(value->type)) return WrongType(key, *value, "an integer");
  const auto number = Widen<int64_t>(value->type, bytes_.data() + value->offset);
  if (value->type == GgufType::kUint64 && number < 0) {
    return WrongType(key, *value, "at most 2^63 - 1");
  }
  return number;
}

absl::StatusOr<double> GgufFile::Number(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, Value(key));
  if (!IsNumber(value->type)) return WrongType(key, *value, "a number");
  return Widen<double>(value->type, bytes_.data() + value->offset);
}

absl::StatusOr<std::vector<std::string_view>> GgufFile::Strings(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* array, Array(key));
  if (array->element != GgufType::kString) return WrongType(key, *array, "an array of strings");
  std::vector<std::string_view> strings;
  strings.reserve(array->count);
  const char* from = bytes_.data() + array->offset;
  for (uint64_t i = 0; i < array->count; ++i) {
    uint64_t length = 0;
    std::memcpy(&length, from, sizeof(length));
    from += sizeof(length);
    strings.emplace_back(from, length);
    from += length;
  }
  return strings;
}

absl::StatusOr<std::vector<int64_t>> GgufFile::Integers(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* array, Array(key));
  if (!IsInteger(array->element)) return WrongType(key, *array, "an array of integers");
  std::vector<int64_t> numbers(array->count);
  for (uint64_t i = 0; i < array->count; ++i) {
    numbers[i] =
        Widen<int64_t>(array->element, bytes_.data() + array->offset + i * BytesOf(array->element));
  }
  return numbers;
}

absl::StatusOr<std::vector<float>> GgufFile::Numbers(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* array, Array(key));
  if (!IsNumber(array->element)) return WrongType(key, *array, "an array of numbers");
  std::vector<float> numbers(array->count);
  for (uint64_t i = 0; i < array->count; ++i) {
    numbers[i] =
        Widen<float>(array->element, bytes_.data() + array->offset + i * BytesOf(array->element));
  }
  return numbers;
}

absl::StatusOr<SourceTensor> GgufFile::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    return absl::NotFoundError(absl::StrCat(path(), ": has no tensor ", Quoted(name)));
  }
  return found->second;
}

bool GgufFile::Contains(std::string_view name) const { return tensors_.contains(name); }

std::vector<std::string> GgufFile::names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

}  // namespace keyline
