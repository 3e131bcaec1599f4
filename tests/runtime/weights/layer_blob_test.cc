// What a layer's blob holds, seen through the operations that read it.

#include "runtime/weights/layer_blob.h"

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/ops/ops.h"
#include "runtime/weights/random_source.h"
#include "runtime/weights/resident_store.h"

namespace keyline {
namespace {

using ::testing::HasSubstr;

// A checkpoint in memory.
class FakeSource : public WeightSource {
 public:
  void Add(const std::string& name, std::vector<int64_t> shape, float first) {
    Entry& entry = entries_[name];
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    for (int64_t i = 0; i < n; ++i) entry.values.push_back(first + static_cast<float>(i));
    entry.shape = std::move(shape);
  }
  absl::StatusOr<SourceTensor> Find(std::string_view name) const override {
    const auto found = entries_.find(std::string(name));
    if (found == entries_.end()) return absl::NotFoundError("no such tensor");
    SourceTensor tensor;
    tensor.shape = found->second.shape;
    tensor.data = reinterpret_cast<const std::byte*>(found->second.values.data());
    tensor.bytes = found->second.values.size() * sizeof(float);
    return tensor;
  }
  bool Contains(std::string_view name) const override {
    return entries_.count(std::string(name)) != 0;
  }
  std::vector<std::string> names() const override { return {}; }
  const std::string& path() const override { return path_; }

 private:
  struct Entry {
    std::vector<int64_t> shape;
    std::vector<float> values;
  };
  std::string path_ = "fake";
  std::map<std::string, Entry> entries_;
};

class LayerBlobTest : public ::testing::Test {
 protected:
  LayerBlobTest() : device_(*OpenDevice("cpu", {.threads = 1})), stream_(device_->NewStream()) {}

  // Row `row` of the matrix, read back as (unit vector) * w^T.
  float At(const Weight& w, int64_t row, int64_t col) {
    std::vector<float> in(w.cols, 0), out(w.rows, 0);
    in[col] = 1;
    ops::MatMul(*stream_, MakeView(out.data(), DType::kF32, {1, w.rows}),
                MakeView(in.data(), DType::kF32, {1, w.cols}), w);
    return out[row];
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
};

TEST_F(LayerBlobTest, StacksBlocksAndAddsBiasesAndOffsets) {
  FakeSource source;
  source.Add("q", {3, 5}, 100);
  source.Add("q.bias", {3}, 0.5f);
  source.Add("fused", {10, 5}, 1000);
  source.Add("norm", {5}, 7);
  LayerSpec spec;
  spec.matrices = {
      MatrixSpec{.blocks = {{.tensor = "q", .rows = 3, .bias = "q.bias"},
                            {.tensor = "fused", .rows = 2, .first_row = 4, .bias = {}}},
                 .cols = 5}};
  spec.vectors = {VectorSpec{.tensor = "norm", .size = 5, .add = 1}};
  const auto blob = LayerBlob::Load(*device_, *stream_, source, spec, DType::kF32);
  ASSERT_TRUE(blob.ok()) << blob.status();
  const Weight& w = blob->weights().matrices[0];
  EXPECT_EQ(w.rows, 5);
  EXPECT_EQ(At(w, 0, 0), 100.0f + 0.5f);
  EXPECT_EQ(At(w, 2, 4), 114.0f + 2.5f);
  EXPECT_EQ(At(w, 3, 0), 1020.0f);  // row 4 of the fused tensor, without a bias
  EXPECT_EQ(At(w, 4, 1), 1026.0f);
  const float* norm = blob->weights().vectors[0].as<float>();
  EXPECT_EQ(norm[0], 8.0f);
  EXPECT_EQ(norm[4], 12.0f);
  EXPECT_EQ(blob->device_bytes(), LayOut(*device_, spec, DType::kF32).bytes);
}

TEST_F(LayerBlobTest, NamesTheTensorOfAWrongShape) {
  FakeSource source;
  source.Add("q", {3, 5}, 0);
  LayerSpec spec;
  spec.matrices = {MatrixSpec{.blocks = {{.tensor = "q", .rows = 4, .bias = {}}}, .cols = 5}};
  const auto blob = LayerBlob::Load(*device_, *stream_, source, spec, DType::kF32);
  EXPECT_EQ(blob.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(blob.status().message()),
      HasSubstr("fake: tensor 'q' has shape [3, 5], the model's configuration needs [4, 5]"));
}

TEST_F(LayerBlobTest, AResidentStoreCountsLayersGlobally) {
  FakeSource source;
  for (int l = 4; l < 6; ++l) source.Add(absl::StrCat("w", l), {16, 16}, 1000.0f * l);
  std::vector<LayerSpec> specs(2);
  for (int i = 0; i < 2; ++i) {
    specs[i].matrices = {MatrixSpec{
        .blocks = {{.tensor = absl::StrCat("w", 4 + i), .rows = 16, .bias = {}}}, .cols = 16}};
  }
  size_t heard = 0;
  const auto store = ResidentStore::Load(*device_, *stream_, source, 4, specs, DType::kF32,
                                         [&](size_t bytes) { heard += bytes; });
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(heard, (*store)->device_bytes());
  EXPECT_EQ(At((*store)->Acquire(*stream_, 5).matrices[0], 0, 0), 5000.0f);
  EXPECT_EQ(At((*store)->Acquire(*stream_, 4).matrices[0], 1, 2), 4018.0f);
}

// Layers of the same bytes are read once; each has memory of its own all the same.
TEST_F(LayerBlobTest, LayersOfTheSameBytesAreCopies) {
  FakeSource source;
  source.Add("w", {16, 16}, 100);
  source.Add("other", {16, 16}, 7);
  source.Add("bias", {16}, 0.5f);
  source.Add("norm", {5}, 3);
  const auto layer = [](const std::string& tensor) {
    LayerSpec spec;
    spec.matrices = {
        MatrixSpec{.blocks = {{.tensor = tensor, .rows = 16, .bias = "bias"}}, .cols = 16}};
    spec.vectors = {VectorSpec{.tensor = "norm", .size = 5, .add = 1}};
    return spec;
  };
  const auto store = ResidentStore::Load(*device_, *stream_, source, 0,
                                         {layer("w"), layer("w"), layer("other"), layer("w")},
                                         DType::kF32, nullptr);
  ASSERT_TRUE(store.ok()) << store.status();
  const LayerWeights first = (*store)->Acquire(*stream_, 0);
  for (const int l : {1, 3}) {
    const LayerWeights again = (*store)->Acquire(*stream_, l);
    EXPECT_EQ(At(again.matrices[0], 2, 3), 135.0f + 2.5f);
    EXPECT_EQ(again.vectors[0].as<float>()[4], 8.0f);
    EXPECT_NE(again.matrices[0].data, first.matrices[0].data);
    EXPECT_NE(again.matrices[0].bias, first.matrices[0].bias);
    EXPECT_NE(again.vectors[0].data, first.vectors[0].data);
  }
  EXPECT_EQ(At((*store)->Acquire(*stream_, 2).matrices[0], 0, 0), 7.5f);
}

TEST_F(LayerBlobTest, RandomWeightsHaveTheShapeAndSpreadTheySay) {
  LayerSpec spec;
  spec.matrices = {MatrixSpec{.blocks = {{.tensor = "m", .rows = 300, .bias = {}}}, .cols = 200}};
  spec.vectors = {VectorSpec{.tensor = "v", .size = 9}};
  const RandomSource source({spec}, 3);
  EXPECT_FALSE(source.Contains("other"));
  const auto m = source.Find("m");
  ASSERT_TRUE(m.ok());
  std::vector<float> values(300 * 200);
  ASSERT_TRUE(ReadRows(*m, 0, 300, values.data()).ok());
  double squares = 0;
  for (float x : values) squares += double{x} * x;
  EXPECT_NEAR(std::sqrt(squares / values.size()), 0.02, 0.001);
}

}  // namespace
}  // namespace keyline
