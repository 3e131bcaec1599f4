#include "runtime/files/safetensors/safetensors.h"

#include <bit>
#include <cstring>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/json_file.h"
#include "runtime/files/quoted.h"

namespace keyline {
namespace {

static_assert(std::endian::native == std::endian::little, "files are read in place");

// The index of a model of many experts has 100,000 tensors.
constexpr JsonLimits kIndexJson = {.max_bytes = 64 << 20, .max_values = 1'100'000};
constexpr size_t kMaxShards = 10'000;

struct OpenedFile {
  std::unique_ptr<InputFile> file;
  std::vector<SafetensorsEntry> entries;
  uint64_t data_begin = 0;
};

absl::StatusOr<OpenedFile> OpenOne(const std::string& path) {
  ASSIGN_OR_RETURN(InputFile file, InputFile::Open(path));
  uint64_t header_bytes = 0;
  constexpr uint64_t kLengthBytes = sizeof(header_bytes);
  if (file.size() < kLengthBytes) {
    return absl::DataLossError(
        absl::StrCat(path, ": has ", file.size(),
                     " bytes; a safetensors file begins with 8 that tell the length "
                     "of its header"));
  }
  RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(&header_bytes, 1))));
  if (header_bytes == 0 || header_bytes > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": header of ", header_bytes,
                                                   " bytes at byte 0; 1 to ",
                                                   kMaxSafetensorsHeaderBytes, " are allowed"));
  }
  if (header_bytes > file.size() - kLengthBytes) {
    return absl::DataLossError(absl::StrCat(path, ": header of ", header_bytes,
                                            " bytes at byte 8, the file has only ", file.size(),
                                            " bytes"));
  }
  std::string json(header_bytes, '\0');
  RETURN_IF_ERROR(file.Read(kLengthBytes, std::as_writable_bytes(std::span(json))));
  OpenedFile opened;
  opened.data_begin = kLengthBytes + header_bytes;
  ASSIGN_OR_RETURN(opened.entries,
                   ParseSafetensorsHeader(json, file.size() - opened.data_begin, path));
  opened.file = std::make_unique<InputFile>(std::move(file));
  return opened;
}

// A shard is a file beside the index, whatever the index says.
absl::Status CheckShardName(const std::string& name, const std::string& tensor,
                            const std::string& path) {
  if (!name.empty() && name != "." && name.find('/') == std::string::npos &&
      name.find("..") == std::string::npos) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(path, ": weight_map: tensor ", Quoted(tensor),
                                                 ": shard ", Quoted(name),
                                                 " is not the plain name of a file beside it"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsSource>> SafetensorsSource::Open(
    const std::string& path) {
  ASSIGN_OR_RETURN(OpenedFile opened, OpenOne(path));
  std::unique_ptr<SafetensorsSource> source(new SafetensorsSource(path));
  for (SafetensorsEntry& entry : opened.entries) {
    std::string name = entry.name;
    source->tensors_.emplace(std::move(name),
                             Place{opened.file.get(), std::move(entry), opened.data_begin});
  }
  source->files_.push_back(std::move(opened.file));
  return source;
}

absl::StatusOr<std::unique_ptr<SafetensorsSource>> SafetensorsSource::OpenIndex(
    const std::string& path) {
  ASSIGN_OR_RETURN(const nlohmann::json index, ReadJsonFile(path, kIndexJson));
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has no weight_map object of tensor names to shards"));
  }
  std::map<std::string, std::vector<std::string>> tensors_of;  // by shard
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": weight_map: tensor ", Quoted(tensor),
                                                     ": the shard must be a string, got ",
                                                     shard.type_name()));
    }
    const auto& name = shard.get_ref<const std::string&>();
    RETURN_IF_ERROR(CheckShardName(name, tensor, path));
    tensors_of[name].push_back(tensor);
  }
  if (tensors_of.size() > kMaxShards) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": weight_map names ", tensors_of.size(),
                                                   " shards, at most ", kMaxShards,
                                                   " are allowed"));
  }
  std::unique_ptr<SafetensorsSource> source(new SafetensorsSource(path));
  const std::string folder = path.substr(0, path.rfind('/') + 1);  // "" without a slash
  for (const auto& [shard, tensors] : tensors_of) {
    ASSIGN_OR_RETURN(OpenedFile opened, OpenOne(folder + shard));
    std::map<std::string_view, SafetensorsEntry*> entries;
    for (SafetensorsEntry& entry : opened.entries) entries.emplace(entry.name, &entry);
    for (const std::string& tensor : tensors) {
      const auto found = entries.find(tensor);
      if (found == entries.end()) {
        return absl::InvalidArgumentError(absl::StrCat(
            path, ": weight_map: tensor ", Quoted(tensor), " is not in shard ", Quoted(shard)));
      }
      source->tensors_.emplace(tensor, Place{opened.file.get(), *found->second, opened.data_begin});
    }
    source->files_.push_back(std::move(opened.file));
  }
  return source;
}

absl::StatusOr<SourceTensor> SafetensorsSource::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    return absl::NotFoundError(absl::StrCat(path_, ": has no tensor ", Quoted(name)));
  }
  const Place& place = found->second;
  if (!place.entry.dtype.has_value()) {
    return absl::UnimplementedError(absl::StrCat(place.file->path(), ": tensor ", Quoted(name),
                                                 " has dtype ", std::string(place.entry.dtype_name),
                                                 "; F32, F16, BF16, I64, I32, I8 and U8 are read"));
  }
  return SourceTensor{.dtype = *place.entry.dtype,
                      .shape = place.entry.shape,
                      .bytes = place.entry.end - place.entry.begin,
                      .file = place.file,
                      .file_offset = place.data_begin + place.entry.begin};
}

bool SafetensorsSource::Contains(std::string_view name) const {
  return tensors_.find(name) != tensors_.end();
}

std::vector<std::string> SafetensorsSource::names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, place] : tensors_) names.push_back(name);
  return names;
}

}  // namespace keyline
