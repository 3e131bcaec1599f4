// ModelConfig from GGUF metadata. For model_config.cc.
#pragma once

#include "absl/status/statusor.h"
#include "runtime/config/model_config.h"
#include "runtime/files/gguf/gguf.h"

namespace keyline {

// Errors as LoadModelConfig's.
absl::StatusOr<ModelConfig> ModelConfigFromGguf(const GgufFile& file);

}  // namespace keyline
