// Checkpoint: a model as it lies on disk, opened: where its tensors are and what its configuration
// says. Headers are read and checked, no weight is.
//
// runtime/config/model_config.h turns it into a ModelConfig; runtime/weights loads from it.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/files/gguf/gguf.h"
#include "runtime/files/weight_source.h"

namespace keyline {

struct Checkpoint {
  std::string path;                       // as given
  std::unique_ptr<WeightSource> weights;  // never null
  // A .gguf file: the same object as `weights`, for its metadata. Null for a directory.
  const GgufFile* gguf = nullptr;
  // A directory: config.json, and generation_config.json or null. Both null for a .gguf file.
  std::shared_ptr<const nlohmann::json> config;
  std::shared_ptr<const nlohmann::json> generation_config;
};

// `path`: a Hugging Face directory, which means config.json and model.safetensors or, where that is
// missing, model.safetensors.index.json (never any other *.safetensors beside it); or one .gguf
// file, told by its content. Errors name the file and what is wrong at which tensor, key or byte.
absl::StatusOr<Checkpoint> OpenCheckpoint(const std::string& path);

}  // namespace keyline
