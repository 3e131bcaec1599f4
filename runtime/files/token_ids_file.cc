#include "runtime/files/token_ids_file.h"

#include <cstring>
#include <limits>
#include <span>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/input_file.h"
#include "runtime/files/json_file.h"
#include "runtime/files/safetensors/safetensors.h"

namespace keyline {
namespace {

using Sequences = std::vector<std::vector<int32_t>>;

constexpr const char* kField = "token_ids";
constexpr JsonLimits kTokenIdsJson = {.max_bytes = 64 << 20, .max_values = 16'000'000};

absl::Status BadToken(const std::string& path, size_t sequence, size_t token,
                      const std::string& got) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": ", kField, ": sequence ", sequence, ", token ", token,
                   ": must be an integer from 0 to 2^31 - 1, got ", got));
}

// A safetensors file tells the length of its header first. Of a JSON text those eight bytes would
// be a number far beyond any file.
absl::StatusOr<bool> IsSafetensors(const std::string& path) {
  ASSIGN_OR_RETURN(const InputFile file, InputFile::Open(path));
  uint64_t header_bytes = 0;
  if (file.size() <= sizeof(header_bytes)) return false;
  RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(&header_bytes, 1))));
  return header_bytes <= file.size() - sizeof(header_bytes);
}

absl::StatusOr<Sequences> FromSafetensors(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsSource> source, SafetensorsSource::Open(path));
  ASSIGN_OR_RETURN(const SourceTensor tensor, source->Find(kField));
  const bool wide = tensor.dtype == DType::kI64;
  if ((!wide && tensor.dtype != DType::kI32) || tensor.shape.empty() || tensor.shape.size() > 2 ||
      tensor.bytes == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ", kField, " must be i32 or i64 [tokens] or [sequences, tokens], got ",
        std::string(Name(tensor.dtype)), " [", absl::StrJoin(tensor.shape, ", "), "]"));
  }
  std::vector<std::byte> bytes(tensor.bytes);
  RETURN_IF_ERROR(ReadBytes(tensor, bytes.data()));
  Sequences sequences(static_cast<size_t>(tensor.rows()));
  const std::byte* from = bytes.data();
  for (size_t s = 0; s < sequences.size(); ++s) {
    sequences[s].resize(static_cast<size_t>(tensor.cols()));
    for (size_t t = 0; t < sequences[s].size(); ++t) {
      int64_t id = 0;
      if (wide) {
        std::memcpy(&id, from, sizeof(id));
        from += sizeof(id);
      } else {
        int32_t narrow = 0;
        std::memcpy(&narrow, from, sizeof(narrow));
        from += sizeof(narrow);
        id = narrow;
      }
      if (id < 0 || id > std::numeric_limits<int32_t>::max()) {
        return BadToken(path, s, t, absl::StrCat(id));
      }
      sequences[s][t] = static_cast<int32_t>(id);
    }
  }
  return sequences;
}

absl::StatusOr<Sequences> FromJson(const std::string& path) {
  ASSIGN_OR_RETURN(const nlohmann::json json, ReadJsonFile(path, kTokenIdsJson));
  const nlohmann::json* ids = &json;
  if (json.is_object()) {
    const auto found = json.find(kField);
    if (found == json.end()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": the object has no ", kField));
    }
    ids = &*found;
  }
  if (!ids->is_array() || ids->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": must hold a list of token ids, a list of such lists, or an object with ", kField));
  }
  const bool many = ids->front().is_array();
  Sequences sequences(many ? ids->size() : 1);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const nlohmann::json& sequence = many ? (*ids)[s] : *ids;
    if (!sequence.is_array() || sequence.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", kField, ": sequence ", s,
                                                     " must be a list of at least one token"));
    }
    sequences[s].reserve(sequence.size());
    for (const nlohmann::json& id : sequence) {
      if (!id.is_number_unsigned() ||
          id.get<uint64_t>() > uint64_t{std::numeric_limits<int32_t>::max()}) {
        return BadToken(path, s, sequences[s].size(), id.is_number() ? id.dump() : id.type_name());
      }
      sequences[s].push_back(static_cast<int32_t>(id.get<uint64_t>()));
    }
  }
  return sequences;
}

}  // namespace

absl::StatusOr<Sequences> ReadTokenIds(const std::string& path) {
  ASSIGN_OR_RETURN(const bool safetensors, IsSafetensors(path));
  return safetensors ? FromSafetensors(path) : FromJson(path);
}

}  // namespace keyline
