// RandomSource: a checkpoint that never was, for benchmarks of a shape without its file. Matrices
// hold normal numbers of deviation 0.02, vectors ones (norm weights). All tensors share one buffer,
// so that layers are made of the same bytes and all but the first are copied on the device.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/files/weight_source.h"
#include "runtime/weights/layer_store.h"

namespace keyline {

class RandomSource : public WeightSource {
 public:
  // Serves exactly the tensors that `specs` ask for.
  RandomSource(const std::vector<LayerSpec>& specs, uint64_t seed);

  absl::StatusOr<SourceTensor> Find(std::string_view name) const override;
  bool Contains(std::string_view name) const override;
  std::vector<std::string> names() const override;
  const std::string& path() const override { return path_; }

 private:
  std::string path_ = "(random weights)";
  std::map<std::string, std::vector<int64_t>, std::less<>> shapes_;
  std::vector<uint16_t> matrix_;  // bfloat16, as many as the largest matrix has
  std::vector<float> ones_;
};

}  // namespace keyline
