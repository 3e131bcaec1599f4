#include "runtime/engine/lane_keeper.h"

#include <glog/logging.h>

#include <utility>

namespace keyline {

void FinishSaves(pipeline::StepResult& result, const std::vector<LaneSave>& saves) {
  CHECK_EQ(result.saved_size(), static_cast<int>(saves.size()));
  for (int i = 0; i < result.saved_size(); ++i) {
    pipeline::LaneState& saved = *result.mutable_saved(i);
    if (saved.status_code() != 0) {
      saves[i].done(
          absl::Status(static_cast<absl::StatusCode>(saved.status_code()), saved.status_message()));
      continue;
    }
    auto image = std::make_shared<LaneImage>();
    image->tokens = saves[i].tokens;
    for (std::string& layer : *saved.mutable_layers()) image->layers.push_back(std::move(layer));
    saves[i].done(std::move(image));
  }
}

}  // namespace keyline
