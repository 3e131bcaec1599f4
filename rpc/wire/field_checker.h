// FieldChecker: bounds the numbers of a message one after the other and remembers the first that is
// wrong, so that a translation reads as a list of fields with their limits.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "rpc/wire/status_to_grpc.h"

namespace keyline {

class FieldChecker {
 public:
  // `prefix` goes before all field names: "sampling.".
  explicit FieldChecker(std::string prefix) : prefix_(std::move(prefix)) {}

  // *to = value, if low <= value <= high. NaN is in no range.
  template <typename Value, typename To>
  void Take(const std::string& field, Value value, Value low, Value high, To* to) {
    if (value >= low && value <= high) {
      *to = static_cast<To>(value);
    } else {
      Refuse(field, absl::StrCat("got ", value, ", must be from ", low, " to ", high));
    }
  }

  void Refuse(const std::string& field, const std::string& what) {
    if (status_.ok()) status_ = FieldError(prefix_ + field, what);
  }

  const absl::Status& status() const { return status_; }

 private:
  std::string prefix_;
  absl::Status status_;
};

}  // namespace keyline
