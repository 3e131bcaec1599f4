// Token ids given as a file (`--token-ids F`).
//
// Told apart by content, not by name: safetensors with `token_ids`, int32 or int64, [tokens] or
// [sequences, tokens]; or JSON: [1, 2], [[1, 2], [3]], or an object with `token_ids` of either
// form.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace keyline {

// One vector a sequence, none empty; ids in [0, 2^31). INVALID_ARGUMENT names the file, the
// sequence and the token at fault. Whether the model knows an id is for the caller to check.
absl::StatusOr<std::vector<std::vector<int32_t>>> ReadTokenIds(const std::string& path);

}  // namespace keyline
