#include "runtime/model/fingerprint.h"

#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/transport/crc32c.h"

namespace keyline {
namespace {

template <class T>
uint32_t Extend(uint32_t crc, std::span<const T> values) {
  return Crc32c(std::as_bytes(values), crc);
}

absl::Status AddRow(const WeightSource& source, const std::string& name, int64_t row,
                    uint32_t* crc) {
  ASSIGN_OR_RETURN(const SourceTensor tensor, source.Find(name));
  std::vector<float> values(tensor.cols());
  RETURN_IF_ERROR(ReadRows(tensor, row, 1, values.data()));
  *crc = Extend(*crc, std::span<const float>(values));
  return absl::OkStatus();
}

absl::Status AddTensors(const WeightSource& source, const LayerSpec& layer, uint32_t* crc) {
  for (const MatrixSpec& matrix : layer.matrices) {
    for (const RowBlock& block : matrix.blocks) {
      RETURN_IF_ERROR(AddRow(source, block.tensor, block.first_row, crc));
      RETURN_IF_ERROR(AddRow(source, block.tensor, block.first_row + block.rows / 2, crc));
    }
  }
  for (const VectorSpec& vector : layer.vectors) {
    RETURN_IF_ERROR(AddRow(source, vector.tensor, 0, crc));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ModelFingerprint(const DecoderModel& model, const WeightSource& source,
                                             DType dtype, WeightStorage storage) {
  const ModelConfig& c = model.config();
  std::string shape =
      absl::StrCat(c.family, "-", c.layers, "x", c.hidden_size, "-", std::string(Name(dtype)));
  if (storage != WeightStorage::kPlain) absl::StrAppend(&shape, "-", std::string(Name(storage)));
  const std::string rest = absl::StrCat(
      c.vocab_size, " ", c.heads, " ", c.kv_heads, " ", c.head_dim, " ", c.intermediate_size, " ",
      c.norm_eps, " ", c.rotary_dim, " ", static_cast<int>(c.rope.kind), " ", c.rope.theta, " ",
      c.rope.factor, " ", c.rope.low_freq_factor, " ", c.rope.high_freq_factor, " ",
      c.rope.original_max_positions);
  uint32_t crc = Extend(0, std::span<const char>(rest));
  crc = Extend(crc, std::span<const float>(c.rope.frequency_divisors));
  RETURN_IF_ERROR(AddTensors(source, model.EmbeddingTensors(), &crc));
  for (int l = 0; l < c.layers; ++l) {
    RETURN_IF_ERROR(AddTensors(source, model.LayerTensors(l), &crc));
  }
  RETURN_IF_ERROR(AddTensors(source, model.HeadTensors(), &crc));
  return absl::StrCat(shape, "-", absl::Hex(crc, absl::kZeroPad8));
}

}  // namespace keyline
