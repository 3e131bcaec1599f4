// Hidden states: what Embed answers, against the checkpoint's own rows and the logits of Score, and
// against itself on any number of ranks and in any pieces.

#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/files/checkpoint.h"
#include "tests/fixtures/tiny_pipeline.h"

namespace keyline {
namespace {

using testing::GoldenModel;
using ::testing::HasSubstr;
using testing::RandomIds;
using testing::RecordingSink;
using testing::TinySetup;
using testing::WithPipeline;

constexpr int kVocab = 320;
constexpr int kLayers = 3;

class LogitsSink : public RecordingSink {
 public:
  void OnLogits(int, std::span<const float> rows) override {
    logits.insert(logits.end(), rows.begin(), rows.end());
  }
  std::vector<float> logits;
};

// What one request heard beside two others that generate.
std::shared_ptr<LogitsSink> Ask(const TinySetup& setup, const Request& request) {
  auto sink = std::make_shared<LogitsSink>();
  WithPipeline(setup, [&](Coordinator& coordinator) {
    Engine engine(coordinator, nullptr, {});
    for (int i = 0; i < 2; ++i) {
      Request other;
      other.prompt = RandomIds(5 + 20 * i, kVocab, 100 + i);
      other.stop.max_new_tokens = 8;
      other.response.text = false;
      ASSERT_TRUE(engine.Submit(other, std::make_shared<RecordingSink>()).ok());
    }
    const auto id = engine.Submit(request, sink);
    ASSERT_TRUE(id.ok()) << id.status();
    engine.Drain();
    const absl::Status ran = engine.Run();
    EXPECT_TRUE(ran.ok()) << ran;
  });
  EXPECT_TRUE(sink->status.ok()) << sink->status;
  EXPECT_EQ(sink->endings, 1);
  EXPECT_TRUE(sink->tokens.empty());
  return sink;
}

Request Embed(const std::vector<int32_t>& prompt, int layer, Pooling pooling) {
  Request request;
  request.prompt = prompt;
  request.response.text = false;
  request.embed = {.enabled = true, .layer = layer, .pooling = pooling};
  return request;
}

std::vector<float> Hidden(const TinySetup& setup, const std::vector<int32_t>& prompt, int layer,
                          Pooling pooling) {
  return Ask(setup, Embed(prompt, layer, pooling))->finish.hidden;
}

// Rows of a matrix of the golden checkpoint.
std::vector<float> Rows(const std::string& name, int64_t first, int64_t count) {
  const absl::StatusOr<Checkpoint> checkpoint = OpenCheckpoint(GoldenModel("llama"));
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto tensor = checkpoint->weights->Find(name);
  EXPECT_TRUE(tensor.ok()) << tensor.status();
  std::vector<float> rows(count * tensor->cols());
  EXPECT_TRUE(ReadRows(*tensor, first, count, rows.data()).ok());
  return rows;
}

TEST(Embed, LayerZeroIsTheEmbedding) {
  const std::vector<int32_t> prompt = RandomIds(70, kVocab, 1);
  EXPECT_EQ(Hidden({}, prompt, 0, Pooling::kLast),
            Rows("model.embed_tokens.weight", prompt.back(), 1));

  const std::vector<float> mean = Hidden({}, prompt, 0, Pooling::kMean);
  std::vector<double> expected(mean.size());
  for (int32_t id : prompt) {
    const std::vector<float> row = Rows("model.embed_tokens.weight", id, 1);
    for (size_t i = 0; i < row.size(); ++i) expected[i] += row[i];
  }
  for (size_t i = 0; i < mean.size(); ++i) {
    EXPECT_EQ(mean[i], static_cast<float>(expected[i] / 70)) << i;
  }
}

TEST(Embed, TheLastStateTimesTheHeadIsTheLogits) {
  const std::vector<int32_t> prompt = RandomIds(40, kVocab, 2);
  const std::vector<float> state = Hidden({}, prompt, kLayers, Pooling::kLast);
  Request score;
  score.prompt = prompt;
  score.response.text = false;
  score.score = {.enabled = true, .logits = true};
  const std::vector<float> logits = Ask({}, score)->logits;
  ASSERT_EQ(logits.size(), prompt.size() * kVocab);
  const std::vector<float> head = Rows("lm_head.weight", 0, kVocab);
  ASSERT_EQ(head.size(), kVocab * state.size());
  for (int v = 0; v < kVocab; ++v) {
    double sum = 0;
    for (size_t i = 0; i < state.size(); ++i) sum += double{state[i]} * head[v * state.size() + i];
    EXPECT_NEAR(sum, logits[(prompt.size() - 1) * kVocab + v], 2e-5) << v;
  }
}

TEST(Embed, TheSameBitsOnAnyRanksAndInAnyPieces) {
  const std::vector<int32_t> prompt = RandomIds(90, kVocab, 3);
  for (int layer = 0; layer <= kLayers; ++layer) {
    for (Pooling pooling : {Pooling::kLast, Pooling::kMean}) {
      const std::vector<float> whole = Hidden({.max_pass_tokens = 256}, prompt, layer, pooling);
      ASSERT_FALSE(whole.empty());
      for (int ranks = 1; ranks <= 3; ++ranks) {
        for (int pass : {40, 64}) {
          EXPECT_EQ(Hidden({.ranks = ranks, .max_pass_tokens = pass}, prompt, layer, pooling),
                    whole)
              << "layer " << layer << ", " << ranks << " ranks, passes of " << pass;
        }
      }
    }
  }
}

TEST(Embed, LayersAndPoolingsDiffer) {
  const std::vector<int32_t> prompt = RandomIds(30, kVocab, 4);
  std::vector<std::vector<float>> seen;
  for (int layer = 0; layer <= kLayers; ++layer) {
    for (Pooling pooling : {Pooling::kLast, Pooling::kMean}) {
      seen.push_back(Hidden({}, prompt, layer, pooling));
      for (size_t i = 0; i + 1 < seen.size(); ++i) EXPECT_NE(seen[i], seen.back());
    }
  }
}

TEST(Embed, ReadsThroughACacheThatEvicts) {
  const std::vector<int32_t> prompt = RandomIds(120, kVocab, 5);
  TinySetup setup{.chunk_size = 16, .cache_length = 48, .policy = "last_recent"};
  for (Pooling pooling : {Pooling::kLast, Pooling::kMean}) {
    const std::vector<float> small = Hidden(setup, prompt, kLayers, pooling);
    EXPECT_NE(small, Hidden({}, prompt, kLayers, pooling));
    setup.ranks = 2;
    EXPECT_EQ(Hidden(setup, prompt, kLayers, pooling), small);
    setup.ranks = 1;
  }
}

TEST(Embed, ALayerThatIsNotThereIsRefused) {
  WithPipeline({}, [](Coordinator& coordinator) {
    Engine engine(coordinator, nullptr, {});
    for (int layer : {-1, kLayers + 1}) {
      const auto id =
          engine.Submit(Embed({1, 2}, layer, Pooling::kLast), std::make_shared<RecordingSink>());
      EXPECT_EQ(id.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(id.status().message()), HasSubstr("layer: must be within [0, 3]"));
    }
    engine.Stop();
    EXPECT_TRUE(engine.Run().ok());
  });
}

}  // namespace
}  // namespace keyline
