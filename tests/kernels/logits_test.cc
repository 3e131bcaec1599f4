// Sampling and log-probabilities against the oracle.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "kernels/device/host_block.h"
#include "kernels/ops/ops.h"
#include "tests/kernels/device_under_test.h"
#include "tests/reference/softmax.h"

namespace keyline {
namespace {

using testing::ElementsAre;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class LogitsTest : public testing::TestWithParam<DeviceUnderTest> {
 protected:
  void SetUp() override {
    SKIP_UNLESS_OPENS(GetParam());
    workbench_.emplace(GetParam());
  }
  Workbench& bench() { return *workbench_; }

  // One row for each position, all with the same logits and parameters.
  std::vector<SampledToken> Sample(const std::vector<float>& logits, const SamplingParams& params,
                                   int positions = 1) {
    const auto vocabulary = static_cast<int64_t>(logits.size());
    std::vector<float> rows;
    std::vector<int32_t> lanes, at;
    for (int i = 0; i < positions; ++i) {
      rows.insert(rows.end(), logits.begin(), logits.end());
      lanes.push_back(1);
      at.push_back(i);
    }
    SampledToken* out = bench().Array(std::vector<SampledToken>(positions));
    ops::Sample(bench().stream(), out, bench().Ints({0}),
                bench().Logits(positions, vocabulary, rows), bench().Ints(lanes), bench().Ints(at),
                bench().Array(std::vector<SamplingParams>{{}, params}), nullptr);
    return bench().Read(out, positions);
  }

  // The tokens that many draws come up with.
  std::vector<int> Support(const std::vector<float>& logits, const SamplingParams& params) {
    std::vector<bool> seen(logits.size(), false);
    for (const SampledToken& token : Sample(logits, params, 500)) seen[token.token] = true;
    std::vector<int> support;
    for (size_t i = 0; i < seen.size(); ++i) {
      if (seen[i]) support.push_back(static_cast<int>(i));
    }
    return support;
  }

  std::optional<Workbench> workbench_;
};

TEST_P(LogitsTest, GreedyTakesTheLowestIdAmongTheLargest) {
  std::vector<float> logits(1000, -1.0f);
  logits[700] = logits[333] = logits[999] = 2.5f;
  const SampledToken token = Sample(logits, {})[0];
  EXPECT_EQ(token.token, 333);
  EXPECT_EQ(token.non_finite, 0);
  EXPECT_NEAR(token.logprob, reference::LogSoftmax(logits)[333], 1e-6);
}

TEST_P(LogitsTest, LogitsThatAreNotFiniteAreCountedAndIgnored) {
  std::vector<float> logits = RandomFloats(77, 1);
  logits[3] = kNan;
  logits[40] = kInf;
  logits[76] = -kInf;
  const int best = reference::Ranking(logits)[0];
  EXPECT_EQ(Sample(logits, {})[0].token, best);
  EXPECT_EQ(Sample(logits, {})[0].non_finite, 3);
  EXPECT_NEAR(Sample(logits, {})[0].logprob, reference::LogSoftmax(logits)[best], 1e-6);
  SamplingParams hot;
  hot.temperature = 50;
  for (const SampledToken& token : Sample(logits, hot, 300)) {
    ASSERT_TRUE(std::isfinite(logits[token.token])) << token.token;
    ASSERT_EQ(token.non_finite, 3);
  }
  for (const float temperature : {0.0f, 1.0f}) {
    SamplingParams params;
    params.temperature = temperature;
    const SampledToken none = Sample({kNan, -kInf, kInf}, params)[0];
    EXPECT_EQ(none.token, -1);
    EXPECT_EQ(none.non_finite, 3);
  }
}

TEST_P(LogitsTest, TopPKeepsWhatTheDocumentSays) {
  std::vector<float> logits;
  for (const double p : {.1, .15, .2, .25, .3}) logits.push_back(static_cast<float>(std::log(p)));
  SamplingParams params;
  params.temperature = 1;
  params.top_p = 0.31f;
  EXPECT_THAT(Support(logits, params), ElementsAre(3, 4));
  params.top_p = 0.6f;
  EXPECT_THAT(Support(logits, params), ElementsAre(2, 3, 4));
  params.top_p = 0.7f;
  EXPECT_THAT(Support(logits, params), ElementsAre(2, 3, 4));
  params.top_p = 0;
  EXPECT_THAT(Support(logits, params), ElementsAre(4));
}

TEST_P(LogitsTest, TopKAndMinPKeepTheLargest) {
  const std::vector<float> logits = {1.0f, 1.2f, 1.2f, 0.9f, 1.2f, -3.0f};
  SamplingParams params;
  params.temperature = 1;
  params.top_k = 2;
  EXPECT_THAT(Support(logits, params), ElementsAre(1, 2));
  params.top_k = 0;
  params.min_p = 0.8f;  // e^-0.2 = 0.819, e^-0.3 = 0.741
  EXPECT_THAT(Support(logits, params), ElementsAre(0, 1, 2, 4));
  params.temperature = 2;  // min_p comes after the temperature: e^-0.15 = 0.861
  EXPECT_THAT(Support(logits, params), ElementsAre(0, 1, 2, 3, 4));
}

TEST_P(LogitsTest, FrequenciesFitTheDistribution) {
  const std::vector<float> logits = RandomFloats(40, 2, 1.5f);
  const int draws = 20000;
  std::vector<SamplingParams> settings(4);
  for (SamplingParams& params : settings) {
    params.temperature = 0.8f;
    params.seed = 7;
  }
  settings[1].top_k = 11;
  settings[2].top_p = 0.8f;
  settings[3].top_k = 25;
  settings[3].top_p = 0.95f;
  settings[3].min_p = 0.03f;
  for (const SamplingParams& params : settings) {
    const auto expected = reference::SamplingDistribution(logits, params);
    std::vector<double> counts(logits.size(), 0.0);
    for (const SampledToken& token : Sample(logits, params, draws)) counts[token.token] += 1;
    double chi_square = 0;
    int freedom = -1;
    for (size_t i = 0; i < counts.size(); ++i) {
      if (expected[i] == 0) {
        ASSERT_EQ(counts[i], 0) << i;
        continue;
      }
      const double mean = expected[i] * draws;
      chi_square += (counts[i] - mean) * (counts[i] - mean) / mean;
      ++freedom;
    }
    EXPECT_LT(chi_square, freedom + 4 * std::sqrt(2.0 * freedom) + 4);
  }
}

// Enough tokens for every thread of a GPU; coarse logits, so that many are equal at every boundary.
TEST_P(LogitsTest, FiltersOfALargeVocabularyFitTheDistribution) {
  const int vocabulary = 20011, draws = 64, groups = 8;
  std::vector<float> logits = RandomFloats(vocabulary, 6, 2.0f);
  for (float& x : logits) x = std::round(4 * x) / 4;
  std::vector<SamplingParams> settings(4);
  for (SamplingParams& params : settings) {
    params.temperature = 1.5f;
    params.seed = 3;
  }
  settings[1].top_k = 777;
  settings[2].top_p = 0.3f;
  settings[3].top_k = 5000;
  settings[3].top_p = 0.7f;
  settings[3].min_p = 0.2f;
  for (const SamplingParams& params : settings) {
    const auto expected = reference::SamplingDistribution(logits, params);
    std::vector<double> means(groups, 0.0), counts(groups, 0.0);
    const auto group = [&](int token) { return token * groups / vocabulary; };
    for (int i = 0; i < vocabulary; ++i) means[group(i)] += expected[i] * draws;
    for (const SampledToken& token : Sample(logits, params, draws)) {
      ASSERT_GT(expected[token.token], 0) << token.token;
      counts[group(token.token)] += 1;
    }
    double chi_square = 0;
    for (int g = 0; g < groups; ++g) {
      chi_square += (counts[g] - means[g]) * (counts[g] - means[g]) / means[g];
    }
    const double freedom = groups - 1;
    EXPECT_LT(chi_square, freedom + 4 * std::sqrt(2.0 * freedom) + 4);
  }
}

TEST_P(LogitsTest, ADrawDependsOnSeedSequenceAndPositionOnly) {
  const std::vector<float> logits = RandomFloats(500, 3, 0.1f);
  SamplingParams params;
  params.temperature = 1;
  params.seed = 1;
  params.sequence = 5;
  const auto draw = [&](const SamplingParams& p) {
    std::vector<int> tokens;
    for (const SampledToken& token : Sample(logits, p, 20)) tokens.push_back(token.token);
    return tokens;
  };
  const auto first = draw(params);
  EXPECT_EQ(draw(params), first);
  EXPECT_EQ(Sample(logits, params, 1)[0].token, first[0]);  // whatever else is in the batch
  SamplingParams other = params;
  other.sequence = 6;
  EXPECT_NE(draw(other), first);
  other = params;
  other.seed = 2;
  EXPECT_NE(draw(other), first);
}

// Where the host reads it without a copy, once it hears that the stream has got there. The place is
// the device's knowledge, as in a recorded step.
TEST_P(LogitsTest, RowsGoToHostMemoryFromTheFirstOneOn) {
  constexpr int64_t kVocabulary = 700;
  constexpr int kRows = 3;
  std::vector<float> logits(kRows * kVocabulary, -1.0f);
  logits[31] = logits[kVocabulary + 7] = 2;
  std::fill(logits.end() - kVocabulary, logits.end(), kNan);
  const HostBlock block =
      HostBlock::Allocate(bench().device(), 3 * kRows * sizeof(SampledToken)).value();
  auto* out = reinterpret_cast<SampledToken*>(block.data());
  std::fill(out, out + 3 * kRows, SampledToken{.token = 99, .logprob = 1, .non_finite = 1});
  const auto there = bench().device().NewEvent();
  const TensorView view = bench().Logits(kRows, kVocabulary, logits);
  const int32_t* lanes = bench().Ints({1, 0, 1});
  const int32_t* positions = bench().Ints({1, 1, 1});
  const auto* params = bench().Array(std::vector<SamplingParams>(2));
  int32_t* first = bench().Array(std::vector<int32_t>(1));
  const auto tokens = [&] {
    std::vector<int> all(3 * kRows);
    std::transform(out, out + all.size(), all.begin(), [](const auto& s) { return s.token; });
    return all;
  };
  // The third time a device that records replays.
  const auto sample_at = [&](int32_t row) {
    bench().Write(first, std::vector<int32_t>{row});
    bench().stream().Replay(1, [&] {
      ops::Sample(bench().stream(), out, first, view, lanes, positions, params, nullptr);
    });
    there->Record(bench().stream());
    bench().stream().WaitFor(*there);
  };
  sample_at(kRows);
  EXPECT_THAT(tokens(), ElementsAre(99, 99, 99, 31, 7, -1, 99, 99, 99));
  sample_at(0);
  EXPECT_THAT(tokens(), ElementsAre(31, 7, -1, 31, 7, -1, 99, 99, 99));
  sample_at(2 * kRows);
  EXPECT_THAT(tokens(), ElementsAre(31, 7, -1, 31, 7, -1, 31, 7, -1));
  EXPECT_EQ(out[2 * kRows + 2].non_finite, kVocabulary);
}

// What a step draws begins the next one, which need not have heard of it.
TEST_P(LogitsTest, TheTokenDrawnForALaneCanBeEmbedded) {
  constexpr int64_t kVocabulary = 50;
  constexpr int64_t kDim = 16;
  std::vector<float> logits(3 * kVocabulary, -1.0f);
  logits[31] = 2;
  logits[kVocabulary + 7] = 2;
  std::fill(logits.end() - kVocabulary, logits.end(), kNan);
  const std::vector<int32_t> lanes = {4, 1, 2};
  int32_t* drawn = bench().Array(std::vector<int32_t>(6, 49));
  ops::Sample(bench().stream(), bench().Array(std::vector<SampledToken>(3)), bench().Ints({0}),
              bench().Logits(3, kVocabulary, logits), bench().Ints(lanes), bench().Ints({1, 1, 1}),
              bench().Array(std::vector<SamplingParams>(6)), drawn);
  EXPECT_THAT(bench().Read(drawn, 6), ElementsAre(49, 7, 0, 49, 31, 49));

  std::vector<Chunk> chunks(4);
  for (int i = 0; i < 4; ++i) chunks[i].lane = std::array{2, 5, 4, 1}[i];
  Batch batch;
  batch.tokens = batch.chunks = 4;
  batch.chunk = bench().Array(chunks);
  batch.token_ids = bench().Ints({kDrawnToken, 11, kDrawnToken, kDrawnToken});
  batch.token_chunk = bench().Ints({0, 1, 2, 3});
  batch.drawn = drawn;
  std::vector<float> table(kVocabulary * kDim);
  for (size_t i = 0; i < table.size(); ++i) {
    const size_t row = i / kDim;
    table[i] = static_cast<float>(row);
  }
  const TensorView out = bench().Floats(4, kDim);
  ops::Embed(bench().stream(), out, batch,
             bench().Pack(GetParam().activations, kVocabulary, kDim, table), 1.0f);
  const std::vector<float> rows = bench().Read(out);
  const std::vector<float> expected = {0, 11, 31, 7};
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i], expected[i / kDim]) << i;
}

TEST_P(LogitsTest, TokenLogProbsMatchTheOracle) {
  for (const int vocabulary : {1, 17, 1000, 49152}) {
    const auto logits = RandomFloats(3 * vocabulary, 4, 4.0f);
    const std::vector<int32_t> targets = {0, -1, vocabulary - 1};
    float* out = bench().Array(std::vector<float>(3, 1.0f));
    ops::TokenLogProbs(bench().stream(), out, bench().Logits(3, vocabulary, logits),
                       bench().Ints(targets));
    const auto actual = bench().Read(out, 3);
    for (int i : {0, 2}) {
      const std::vector<float> row(logits.begin() + i * vocabulary,
                                   logits.begin() + (i + 1) * vocabulary);
      EXPECT_NEAR(actual[i], reference::LogSoftmax(row)[targets[i]], 2e-6) << vocabulary;
    }
    EXPECT_EQ(actual[1], 0);
  }
}

TEST_P(LogitsTest, TopLogProbsAreInOrder) {
  auto logits = RandomFloats(2 * 300, 5);
  logits[17] = logits[5] = logits[200] = 9;
  logits[18] = kNan;
  const int count = kMaxTopLogProbs;
  int32_t* tokens = bench().Array(std::vector<int32_t>(2 * count));
  float* logprobs = bench().Array(std::vector<float>(2 * count));
  ops::TopLogProbs(bench().stream(), tokens, logprobs, count, bench().Logits(2, 300, logits));
  const auto actual_tokens = bench().Read(tokens, 2 * count);
  const auto actual_logprobs = bench().Read(logprobs, 2 * count);
  for (int row = 0; row < 2; ++row) {
    const std::vector<float> values(logits.begin() + row * 300, logits.begin() + (row + 1) * 300);
    const auto ranking = reference::Ranking(values);
    const auto expected = reference::LogSoftmax(values);
    for (int i = 0; i < count; ++i) {
      ASSERT_EQ(actual_tokens[row * count + i], ranking[i]);
      ASSERT_NEAR(actual_logprobs[row * count + i], expected[ranking[i]], 2e-6);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, LogitsTest, testing::ValuesIn(DevicesUnderTest()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace keyline
