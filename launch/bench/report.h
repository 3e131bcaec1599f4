// The table of `keyline bench`, for people or as JSON. Every row has a limit, measured in the same
// run, and says where it comes from.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace keyline::bench {

struct Row {
  std::string name;
  double value = 0;  // median
  std::string unit;  // the same for `limit`; more is better
  double limit = 0;
  std::string limit_by;
  // Further fields of the JSON object, which replace those of the setting: {"us", 12.5}, ...
  nlohmann::json more = nlohmann::json::object();
};

class Report {
 public:
  // Fields that all following rows have: model, device, dtype, policy, ...
  void Set(const std::string& field, nlohmann::json value) { setting_[field] = std::move(value); }
  void Add(Row row);
  void Print(bool json) const;
  const std::vector<Row>& rows() const { return rows_; }

 private:
  nlohmann::json setting_ = nlohmann::json::object();
  std::vector<Row> rows_;
};

// "4.5 TB/s", "780 TFLOP/s": a rate of `unit` a second with three figures.
std::string Rate(double rate, const char* unit);

}  // namespace keyline::bench
