// What commands print as JSON, and the files that they write.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/engine/request.h"
#include "runtime/pipeline/step_plan.pb.h"

namespace keyline {

const char* FinishReasonName(FinishReason reason);
nlohmann::json ToJson(const Usage& usage);
nlohmann::json ToJson(const Timings& timings);
nlohmann::json ToJson(const CacheReport& report);

// Both: INVALID_ARGUMENT names the path where it cannot be written.
absl::Status WriteTextFile(const std::string& path, const std::string& text);
absl::Status WriteJsonFile(const std::string& path, const nlohmann::json& json);

// When each rank began and ended each step: [{"step", "rank", "begin_ms", "end_ms", "wait_ms"},
// ...], from the first step's beginning.
class TimingFile {
 public:
  TimingFile() = default;
  static absl::StatusOr<TimingFile> Open(const std::string& path);
  bool is_open() const { return !path_.empty(); }
  std::function<void(const pipeline::StageTiming&, uint64_t step)> Listener();
  // Writes the file. OK where none is open.
  absl::Status Close();

 private:
  struct Row {
    uint64_t step;
    pipeline::StageTiming timing;
  };
  std::string path_;
  std::shared_ptr<std::vector<Row>> rows_;
};

}  // namespace keyline
