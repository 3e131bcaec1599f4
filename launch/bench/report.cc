#include "launch/bench/report.h"

#include <cstdio>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace keyline::bench {

std::string Rate(double rate, const char* unit) {
  const bool tera = rate >= 1e12;
  return absl::StrFormat("%.3g %s%s/s", rate * (tera ? 1e-12 : 1e-9), tera ? "T" : "G", unit);
}

void Report::Add(Row row) {
  nlohmann::json all = setting_;
  all["date"] = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone());
  all.update(row.more);
  row.more = std::move(all);
  rows_.push_back(std::move(row));
}

void Report::Print(bool json) const {
  if (json) {
    nlohmann::json out = nlohmann::json::array();
    for (const Row& row : rows_) {
      nlohmann::json object = {{"name", row.name},
                               {"value", row.value},
                               {"unit", row.unit},
                               {"limit", row.limit},
                               {"ratio", row.value / row.limit},
                               {"limit_by", row.limit_by}};
      object.update(row.more);
      out.push_back(std::move(object));
    }
    std::printf("%s\n", out.dump().c_str());
    return;
  }
  std::string title;
  for (const auto& [field, value] : setting_.items()) {
    if (!title.empty()) title += ", ";
    title += field + " " + (value.is_string() ? value.get<std::string>() : value.dump());
  }
  std::printf("%s\n| %-40s | %12s | %-7s | %12s | %5s | %s\n", title.c_str(), "work", "median",
              "unit", "limit", "ratio", "limit by");
  for (const Row& row : rows_) {
    std::printf("| %-40s | %12.1f | %-7s | %12.1f | %5.2f | %s\n", row.name.c_str(), row.value,
                row.unit.c_str(), row.limit, row.value / row.limit, row.limit_by.c_str());
  }
}

}  // namespace keyline::bench
