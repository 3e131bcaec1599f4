// Which format each matrix gets, and that what is loaded in it has the file's numbers.
#include "runtime/weights/weight_storage.h"

#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/ops/ops.h"
#include "kernels/ops/weight_blocks.h"
#include "runtime/weights/layer_blob.h"

namespace keyline {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kRows = 20;
constexpr int64_t kCols = 64;

// Matrices [kRows, kCols] of several types in memory: an element is a small number of its own.
class Source : public WeightSource {
 public:
  void Add(const std::string& name, DType dtype) {
    std::vector<float> values(kRows * kCols);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = std::sin(static_cast<float>(i + 100 * tensors_.size()));
    }
    std::vector<std::byte>& bytes = bytes_[name];
    if (dtype == DType::kF32) {
      bytes.resize(values.size() * sizeof(float));
      std::memcpy(bytes.data(), values.data(), bytes.size());
    } else {
      bytes.resize(BytesOf(dtype, kRows * kCols));
      if (IsPacked(dtype)) QuantizeRow(dtype, values.data(), kRows * kCols, bytes.data());
    }
    tensors_[name] = {.dtype = dtype,
                      .shape = {kRows, kCols},
                      .data = bytes.data(),
                      .bytes = bytes.size(),
                      .file = nullptr,
                      .file_offset = 0};
  }
  absl::StatusOr<SourceTensor> Find(std::string_view name) const override {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return absl::NotFoundError("no such tensor");
    return found->second;
  }
  bool Contains(std::string_view name) const override { return tensors_.count(name) != 0; }
  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) names.push_back(name);
    return names;
  }
  const std::string& path() const override { return path_; }

 private:
  std::string path_ = "memory";
  std::map<std::string, std::vector<std::byte>> bytes_;
  std::map<std::string, SourceTensor, std::less<>> tensors_;
};

LayerSpec SpecOf(const std::vector<std::vector<std::string>>& matrices) {
  LayerSpec spec;
  for (const std::vector<std::string>& blocks : matrices) {
    MatrixSpec matrix;
    matrix.cols = kCols;
    for (const std::string& name : blocks) {
      matrix.blocks.push_back({.tensor = name, .rows = kRows, .bias = {}});
    }
    spec.matrices.push_back(matrix);
  }
  return spec;
}

using Formats = std::vector<std::optional<DType>>;

Formats FormatsIn(const LayerSpec& spec) {
  Formats formats;
  for (const MatrixSpec& matrix : spec.matrices) formats.push_back(matrix.format);
  return formats;
}

TEST(WeightStorage, NamesGoBothWays) {
  for (const std::string& name : WeightStorageNames()) {
    const auto storage = ParseWeightStorage(name);
    ASSERT_TRUE(storage.ok()) << storage.status();
    EXPECT_EQ(Name(*storage), name);
  }
  const auto unknown = ParseWeightStorage("int3");
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.status().message()),
              HasSubstr("'int3' is unknown; known: plain, int8, int4, file"));
}

TEST(WeightStorage, IntegersAreForAllMatricesAndInt4SparesTheEnds) {
  Source source;
  source.Add("a", DType::kF32);
  const LayerSpec spec = SpecOf({{"a"}, {"a", "a"}});
  const auto of_layer = [&](WeightStorage s) {
    return FormatsIn(WeightFormats(s, source).OfLayer(spec));
  };
  const auto of_end = [&](WeightStorage s) {
    return FormatsIn(WeightFormats(s, source).OfEnd(spec));
  };
  EXPECT_EQ(of_layer(WeightStorage::kPlain), Formats(2));
  EXPECT_EQ(of_end(WeightStorage::kPlain), Formats(2));
  EXPECT_EQ(of_layer(WeightStorage::kInt8), Formats(2, DType::kQ8_0));
  EXPECT_EQ(of_end(WeightStorage::kInt8), Formats(2, DType::kQ8_0));
  EXPECT_EQ(of_layer(WeightStorage::kInt4), Formats(2, DType::kQ4_1));
  EXPECT_EQ(of_end(WeightStorage::kInt4), Formats(2, DType::kQ8_0));
}

TEST(WeightStorage, FileKeepsWhatTheFileHasPackedInOneFormat) {
  Source source;
  source.Add("q8", DType::kQ8_0);
  source.Add("q40", DType::kQ4_0);
  source.Add("q41", DType::kQ4_1);
  source.Add("q5", DType::kQ5_0);
  source.Add("f32", DType::kF32);
  const WeightFormats formats(WeightStorage::kFile, source);
  EXPECT_EQ(formats.storage(), WeightStorage::kFile);
  const LayerSpec spec = SpecOf({{"q8"},
                                 {"q40", "q41"},
                                 {"q8", "q41"},
                                 {"q8", "f32"},
                                 {"f32", "q8"},
                                 {"q5"},
                                 {"missing"},
                                 {"q41", "q41", "q8"}});
  const Formats expected = {DType::kQ8_0, DType::kQ4_1, {}, {}, {}, {}, {}, {}};
  EXPECT_EQ(FormatsIn(formats.OfLayer(spec)), expected);
  EXPECT_EQ(FormatsIn(formats.OfEnd(spec)), expected);

  Source floats;
  floats.Add("f32", DType::kF32);
  EXPECT_EQ(WeightFormats(WeightStorage::kFile, floats).storage(), WeightStorage::kPlain);
}

// Rows of blocks reach the device without a detour over floats: embedding reads the file's numbers.
TEST(WeightStorage, BlobsHaveTheNumbersOfTheFile) {
  Source source;
  source.Add("q8", DType::kQ8_0);
  source.Add("q41", DType::kQ4_1);
  source.Add("f32", DType::kF32);
  const LayerSpec spec = SpecOf({{"q8"}, {"q41", "q41"}, {"f32"}});
  const auto device = *OpenDevice("cpu", {.threads = 1});
  const auto stream = device->NewStream();
  const LayerSpec packed = WeightFormats(WeightStorage::kFile, source).OfLayer(spec);
  const auto blob = LayerBlob::Load(*device, *stream, source, packed, DType::kF32);
  ASSERT_TRUE(blob.ok()) << blob.status();
  const auto plain = LayerBlob::Load(*device, *stream, source, spec, DType::kF32);
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(blob->device_bytes(), LayOut(*device, packed, DType::kF32).bytes);
  EXPECT_LT(blob->device_bytes(), plain->device_bytes());
  for (size_t m = 0; m < spec.matrices.size(); ++m) {
    const Weight& w = blob->weights().matrices[m];
    EXPECT_EQ(w.dtype, packed.matrices[m].format.value_or(DType::kF32));
    std::vector<int32_t> ids(w.rows);
    for (int64_t r = 0; r < w.rows; ++r) ids[r] = static_cast<int32_t>(r);
    Batch batch;
    batch.tokens = static_cast<int>(w.rows);
    batch.token_ids = ids.data();
    std::vector<float> actual(w.rows * kCols), expected(w.rows * kCols);
    ops::Embed(*stream, MakeView(actual.data(), DType::kF32, {w.rows, kCols}), batch, w, 1.0f);
    ops::Embed(*stream, MakeView(expected.data(), DType::kF32, {w.rows, kCols}), batch,
               plain->weights().matrices[m], 1.0f);
    EXPECT_EQ(actual, expected) << m;
  }
}

}  // namespace
}  // namespace keyline
