#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/model/decoder_model.h"
#include "runtime/model/llama.h"
#include "runtime/model/qwen3.h"

namespace keyline {
namespace {

struct Family {
  const char* name;
  std::unique_ptr<DecoderModel> (*make)(const ModelConfig& config);
};

constexpr Family kFamilies[] = {
    {"llama", MakeLlama},
    {"qwen3", MakeQwen3},
};

}  // namespace

absl::StatusOr<std::unique_ptr<DecoderModel>> MakeModel(const ModelConfig& config) {
  std::vector<std::string> names;
  for (const Family& family : kFamilies) {
    if (config.family == family.name) return family.make(config);
    names.emplace_back(family.name);
  }
  return absl::UnimplementedError(
      absl::StrCat("model family '", config.family,
                   "' is not supported; supported: ", absl::StrJoin(names, ", ")));
}

}  // namespace keyline
