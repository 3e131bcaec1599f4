#include "runtime/weights/random_source.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"

namespace keyline {

RandomSource::RandomSource(const std::vector<LayerSpec>& specs, uint64_t seed) {
  int64_t matrix_elements = 0;
  int64_t vector_elements = 0;
  for (const LayerSpec& spec : specs) {
    for (const MatrixSpec& matrix : spec.matrices) {
      for (const RowBlock& block : matrix.blocks) {
        std::vector<int64_t>& shape = shapes_[block.tensor];
        const int64_t rows = block.first_row + block.rows;
        shape = {shape.empty() ? rows : std::max(shape[0], rows), matrix.cols};
        matrix_elements = std::max(matrix_elements, shape[0] * shape[1]);
        if (block.bias.empty()) continue;
        shapes_[block.bias] = {rows};
        vector_elements = std::max(vector_elements, rows);
      }
    }
    for (const VectorSpec& vector : spec.vectors) {
      shapes_[vector.tensor] = {vector.size};
      vector_elements = std::max(vector_elements, vector.size);
    }
  }
  ones_.assign(vector_elements, 1.0f);
  matrix_.resize(matrix_elements);
  // A block of true normal numbers, then rotations of it: drawing billions would take minutes.
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  const size_t block = std::min<size_t>(matrix_.size(), 1 << 20);
  for (size_t i = 0; i < block; ++i) {
    matrix_[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(normal(random)) >> 16);
  }
  for (size_t at = block; at < matrix_.size(); at += block) {
    const size_t turn = random() % block;
    const size_t count = std::min(block, matrix_.size() - at);
    const size_t head = std::min(count, block - turn);
    std::copy_n(matrix_.begin() + turn, head, matrix_.begin() + at);
    std::copy_n(matrix_.begin(), count - head, matrix_.begin() + at + head);
  }
}

absl::StatusOr<SourceTensor> RandomSource::Find(std::string_view name) const {
  const auto found = shapes_.find(name);
  if (found == shapes_.end()) {
    return absl::NotFoundError(absl::StrCat("no random tensor '", std::string(name), "'"));
  }
  SourceTensor tensor;
  tensor.shape = found->second;
  const bool matrix = tensor.shape.size() == 2;
  tensor.dtype = matrix ? DType::kBF16 : DType::kF32;
  tensor.data = matrix ? reinterpret_cast<const std::byte*>(matrix_.data())
                       : reinterpret_cast<const std::byte*>(ones_.data());
  tensor.bytes = BytesOf(tensor.dtype, tensor.rows() * tensor.cols());
  return tensor;
}

bool RandomSource::Contains(std::string_view name) const {
  return shapes_.find(name) != shapes_.end();
}

std::vector<std::string> RandomSource::names() const {
  std::vector<std::string> all;
  for (const auto& [name, shape] : shapes_) all.push_back(name);
  return all;
}

}  // namespace keyline
