// ReferenceLogits: every logit of the dense cache, in a file without a name that goes when this
// object does: memory stays bounded however long the text is. The system keeps in memory what it
// can spare. Thread: one at a time.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace keyline {

class ReferenceLogits {
 public:
  // Room for `windows` x `rows` x `vocab` float32 in `folder`. RESOURCE_EXHAUSTED where the disk
  // has less, with what would do.
  static absl::StatusOr<ReferenceLogits> Create(const std::string& folder, int windows, int rows,
                                                int vocab);
  ReferenceLogits(ReferenceLogits&& other) noexcept;
  ReferenceLogits& operator=(ReferenceLogits&& other) = delete;
  ~ReferenceLogits();

  // `values`: whole rows, from row `first` on.
  absl::Status Write(int window, int first, std::span<const float> values);
  absl::Status Read(int window, int first, std::span<float> values) const;

 private:
  ReferenceLogits(int file, int rows, int vocab) : file_(file), rows_(rows), vocab_(vocab) {}
  int64_t Offset(int window, int first) const {
    return (int64_t{window} * rows_ + first) * vocab_ * static_cast<int64_t>(sizeof(float));
  }

  int file_;
  int rows_;
  int vocab_;
};

}  // namespace keyline
