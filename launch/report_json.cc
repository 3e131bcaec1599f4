#include "launch/report_json.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace keyline {

const char* FinishReasonName(FinishReason reason) {
  return reason == FinishReason::kStop ? "stop" : "length";
}

nlohmann::json ToJson(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens}, {"new_tokens", usage.new_tokens}};
}

nlohmann::json ToJson(const Timings& timings) {
  return {{"queued_s", absl::ToDoubleSeconds(timings.queued)},
          {"first_token_s", absl::ToDoubleSeconds(timings.first_token)},
          {"total_s", absl::ToDoubleSeconds(timings.total)}};
}

nlohmann::json ToJson(const CacheReport& report) {
  nlohmann::json layers = nlohmann::json::array();
  for (const LayerCacheReport& layer : report.layers) {
    layers.push_back({{"layer", layer.layer},
                      {"cache_length", layer.cache_length},
                      {"slots_used", layer.slots_used},
                      {"evicted", layer.evicted},
                      {"protected_slots", layer.protected_slots}});
  }
  return {{"policy", report.policy},
          {"storage", report.storage},
          {"chunk_size", report.chunk_size},
          {"lane_bytes", report.lane_bytes},
          {"layers", std::move(layers)}};
}

absl::Status WriteTextFile(const std::string& path, const std::string& text) {
  FILE* file = std::fopen(path.c_str(), "wb");
  bool ok = file != nullptr;
  if (ok) {
    ok = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    ok = std::fclose(file) == 0 && ok;
  }
  if (!ok) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

absl::Status WriteJsonFile(const std::string& path, const nlohmann::json& json) {
  return WriteTextFile(path, json.dump() + "\n");
}

absl::StatusOr<TimingFile> TimingFile::Open(const std::string& path) {
  TimingFile file;
  file.path_ = path;
  file.rows_ = std::make_shared<std::vector<Row>>();
  return file;
}

std::function<void(const pipeline::StageTiming&, uint64_t step)> TimingFile::Listener() {
  return [rows = rows_](const pipeline::StageTiming& timing, uint64_t step) {
    rows->push_back({step, timing});
  };
}

absl::Status TimingFile::Close() {
  if (!is_open()) return absl::OkStatus();
  int64_t origin = INT64_MAX;
  for (const Row& row : *rows_) origin = std::min(origin, row.timing.begin_ns());
  nlohmann::json out = nlohmann::json::array();
  for (const Row& row : *rows_) {
    out.push_back({{"step", row.step},
                   {"rank", row.timing.rank()},
                   {"begin_ms", (row.timing.begin_ns() - origin) * 1e-6},
                   {"end_ms", (row.timing.end_ns() - origin) * 1e-6},
                   {"wait_ms", row.timing.wait_ns() * 1e-6}});
  }
  return WriteJsonFile(path_, out);
}

}  // namespace keyline
