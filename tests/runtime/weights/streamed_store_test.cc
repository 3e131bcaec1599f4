// Layers that stream hold, when their turn comes, what resident ones hold.

#include "runtime/weights/streamed_store.h"

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/weights/random_source.h"
#include "runtime/weights/resident_store.h"

namespace keyline {
namespace {

constexpr int kFirst = 4;
constexpr int kLayers = 5;
constexpr int kCols = 24;

// Layers of different sizes, each with numbers of its own: rows of one large tensor from another
// place.
std::vector<LayerSpec> Specs() {
  std::vector<LayerSpec> specs(kLayers);
  for (int l = 0; l < kLayers; ++l) {
    MatrixSpec matrix;
    matrix.blocks = {{.tensor = "w", .rows = 20 + 3 * l, .first_row = 40 * l, .bias = {}}};
    matrix.cols = kCols;
    specs[l].matrices = {matrix};
    specs[l].vectors = {{.tensor = absl::StrCat("v", l), .size = 7 + l, .add = 0.5f * l}};
  }
  return specs;
}

std::string BytesOfLayer(const Device& device, const LayerWeights& weights) {
  const Weight& w = weights.matrices[0];
  const TensorView& v = weights.vectors[0];
  std::string bytes(static_cast<const char*>(w.data), 16 * kCols * sizeof(float));
  bytes.append(static_cast<const char*>(v.data), v.bytes());
  EXPECT_TRUE(device.memory_is_host());
  return bytes;
}

TEST(StreamedStore, HoldsWhatAResidentOneHolds) {
  const auto device = *OpenDevice("cpu", {.threads = 1});
  const auto stream = device->NewStream();
  const std::vector<LayerSpec> specs = Specs();
  const RandomSource source(specs, 9);
  const auto resident =
      ResidentStore::Load(*device, *stream, source, kFirst, specs, DType::kF32, nullptr);
  ASSERT_TRUE(resident.ok()) << resident.status();
  size_t widest = 0;
  for (const LayerSpec& spec : specs) {
    widest = std::max(widest, LayOut(*device, spec, DType::kF32).bytes);
  }
  const std::vector<std::vector<bool>> ways = {{true, true, true, true, true},
                                               {false, true, false, true, true},
                                               {false, false, true, false, false},
                                               {false, false, false, false, false}};
  for (const std::vector<bool>& streamed : ways) {
    for (const int slots : {2, 3}) {
      for (const size_t host_bytes : {SIZE_MAX, 2 * widest, size_t{0}}) {
        size_t heard = 0;
        const size_t used = device->used_bytes();
        const auto store =
            StreamedStore::Load(*device, *stream, source, kFirst, specs, DType::kF32,
                                {.streamed = streamed, .slots = slots, .host_bytes = host_bytes},
                                [&](size_t bytes) { heard += bytes; });
        ASSERT_TRUE(store.ok()) << store.status();
        EXPECT_EQ(heard, (*resident)->device_bytes());
        EXPECT_EQ((*store)->device_bytes(), device->used_bytes() - used);
        size_t sweep = 0;
        size_t stay = 0;
        int streams = 0;
        for (int l = 0; l < kLayers; ++l) {
          const size_t bytes = LayOut(*device, specs[l], DType::kF32).bytes;
          (streamed[l] ? sweep : stay) += bytes;
          streams += streamed[l] ? 1 : 0;
        }
        EXPECT_LE((*store)->device_bytes(), stay + (streams > 0 ? slots * widest : 0));
        const bool all_fit = host_bytes == SIZE_MAX || (streams == 1 && host_bytes > 0);
        EXPECT_EQ((*store)->unpinned_layers() == 0, streams == 0 || all_fit);
        for (int round = 0; round < 3; ++round) {
          for (int l = kFirst; l < kFirst + kLayers; ++l) {
            const std::string expected = BytesOfLayer(*device, (*resident)->Acquire(*stream, l));
            EXPECT_EQ(BytesOfLayer(*device, (*store)->Acquire(*stream, l)), expected)
                << "layer " << l << ", round " << round;
            (*store)->Release(*stream, l);
          }
        }
        // Those ahead of the next round, besides.
        EXPECT_GE((*store)->streamed_bytes(), static_cast<int64_t>(3 * sweep));
        EXPECT_LE((*store)->streamed_bytes(), static_cast<int64_t>(3 * sweep + slots * widest));
      }
    }
  }
}

TEST(StreamedStore, FindsWhatIsWrongWithAMissingTensorWhenItLoads) {
  const auto device = *OpenDevice("cpu", {.threads = 1});
  const auto stream = device->NewStream();
  std::vector<LayerSpec> specs = Specs();
  const RandomSource source(specs, 9);
  specs[3].vectors[0].tensor = "gone";
  for (const size_t host_bytes : {SIZE_MAX, size_t{0}}) {
    const auto store = StreamedStore::Load(
        *device, *stream, source, kFirst, specs, DType::kF32,
        {.streamed = std::vector<bool>(kLayers, true), .host_bytes = host_bytes}, nullptr);
    EXPECT_EQ(store.status().code(), absl::StatusCode::kNotFound) << store.status();
  }
}

}  // namespace
}  // namespace keyline
