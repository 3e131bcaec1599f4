#include "runtime/files/checkpoint.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/json_file.h"
#include "runtime/files/safetensors/safetensors.h"

namespace keyline {
namespace {

bool Exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

absl::StatusOr<std::shared_ptr<const nlohmann::json>> ReadConfig(const std::string& path) {
  ASSIGN_OR_RETURN(nlohmann::json config, ReadJsonFile(path, kConfigJson));
  if (!config.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": must hold a JSON object, got ", config.type_name()));
  }
  return std::make_shared<const nlohmann::json>(std::move(config));
}

absl::StatusOr<std::unique_ptr<SafetensorsSource>> OpenWeights(const std::string& directory) {
  const std::string whole = directory + "/model.safetensors";
  const std::string index = directory + "/model.safetensors.index.json";
  if (Exists(whole)) return SafetensorsSource::Open(whole);
  if (Exists(index)) return SafetensorsSource::OpenIndex(index);
  return absl::NotFoundError(
      absl::StrCat(directory,
                   ": has neither model.safetensors nor model.safetensors.index.json; weights in "
                   "other formats must be converted first"));
}

}  // namespace

absl::StatusOr<Checkpoint> OpenCheckpoint(const std::string& path) {
  Checkpoint checkpoint;
  checkpoint.path = path;
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) {
    absl::StatusOr<std::unique_ptr<GgufFile>> gguf = GgufFile::Open(path);
    if (!gguf.ok()) {
      return absl::Status(gguf.status().code(),
                          absl::StrCat("model ", gguf.status().message(),
                                       " (a model is a Hugging Face directory or a .gguf file)"));
    }
    checkpoint.gguf = gguf->get();
    checkpoint.weights = *std::move(gguf);
    return checkpoint;
  }
  ASSIGN_OR_RETURN(checkpoint.config, ReadConfig(path + "/config.json"));
  const std::string generation = path + "/generation_config.json";
  if (Exists(generation)) {
    ASSIGN_OR_RETURN(checkpoint.generation_config, ReadConfig(generation));
  }
  ASSIGN_OR_RETURN(checkpoint.weights, OpenWeights(path));
  return checkpoint;
}

}  // namespace keyline
