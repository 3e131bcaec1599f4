// The parts of `keyline eval`: arithmetic, grid, table, plot, and the file of reference logits.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "launch/eval/divergence.h"
#include "launch/eval/grid.h"
#include "launch/eval/reference_logits.h"
#include "launch/eval/svg_plot.h"
#include "launch/eval/table.h"

namespace keyline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

double KlOf(const std::vector<float>& reference, const std::vector<float>& other) {
  return Divergence(reference, other);
}

TEST(Divergence, IsThatOfTheDistributions) {
  // (1/2, 1/4, 1/4) against (1/4, 1/4, 1/2): ln 2 / 4; logits may be shifted by any constant.
  const float ln2 = std::log(2.0f);
  EXPECT_NEAR(KlOf({ln2, 0, 0}, {0, 0, ln2}), std::log(2.0) / 4, 1e-7);
  EXPECT_NEAR(KlOf({ln2 + 100, 100, 100}, {-70, -70, ln2 - 70}), std::log(2.0) / 4, 1e-5);
  // Certain against even odds of four: ln 4.
  EXPECT_NEAR(KlOf({90, 0, 0, 0}, {1, 1, 1, 1}), std::log(4.0), 1e-7);
  // Not symmetric.
  EXPECT_GT(std::abs(KlOf({2, 0, 0}, {0, 0, 0}) - KlOf({0, 0, 0}, {2, 0, 0})), 0.01);
}

TEST(Divergence, OfEqualRowsIsExactlyZero) {
  std::vector<float> row(1000);
  for (size_t i = 0; i < row.size(); ++i) row[i] = std::sin(static_cast<float>(i)) * 20;
  EXPECT_EQ(KlOf(row, row), 0);
  std::vector<float> near = row;
  near[7] += 0.5f;
  EXPECT_GT(KlOf(row, near), 0);
}

TEST(Divergence, IgnoresWhatTheReferenceRulesOut) {
  const float never = -INFINITY;
  EXPECT_NEAR(KlOf({0, 0, never}, {0, 0, 0}), std::log(1.5), 1e-7);
  EXPECT_NEAR(KlOf({0, 0, never}, {0, 0, never}), 0, 1e-12);
}

TEST(Compare, AveragesOverTokensAndTellsTheEvictedPart) {
  const std::vector<WindowScore> dense = {{{-1, -2, -3}, {0, 0, 0, 0}},
                                          {{-1, -1, -1}, {0, 0, 0, 0}}};
  const std::vector<WindowScore> evicting = {{{-1, -2.5, -4}, {0, 0.25, 0.5, 99}},
                                             {{-1, -1, -1.5}, {0, 0, 0.75, 99}}};
  const Price all = Compare(dense, evicting, 0);
  EXPECT_EQ(all.tokens, 6);
  EXPECT_DOUBLE_EQ(all.nll, 11.0 / 6);
  EXPECT_DOUBLE_EQ(all.delta_nll, 2.0 / 6);
  // The last row predicts nothing that was given.
  EXPECT_DOUBLE_EQ(all.divergence, 1.5 / 6);
  // Windows lose 0.5 and 1/6 a token: standard deviation (1/3) / sqrt 2, error half of 1/3.
  ASSERT_TRUE(all.delta_nll_error.has_value());
  EXPECT_NEAR(*all.delta_nll_error, 1.0 / 6, 1e-12);

  const Price late = Compare(dense, evicting, 2);
  EXPECT_EQ(late.tokens, 2);
  EXPECT_DOUBLE_EQ(late.delta_nll, 0.75);
  EXPECT_DOUBLE_EQ(late.divergence, 0.625);

  EXPECT_EQ(Compare(dense, evicting, 4).tokens, 0);
  const Price same = Compare(dense, dense, 0);
  EXPECT_EQ(same.delta_nll, 0);
  EXPECT_EQ(same.divergence, 0);
  EXPECT_FALSE(Compare({dense.data(), 1}, {evicting.data(), 1}, 0).delta_nll_error.has_value());
}

EvalAxes SomeAxes() {
  EvalAxes axes;
  axes.policies = {"dense", "last_recent", "h2o_vnorm+norm", "qh2o"};
  axes.storages = {"plain", "int8"};
  axes.fractions = {"1/4", "0.5"};
  axes.grace = "1/4";
  axes.rest.sinks = 4;
  axes.rest.chunk_size = 16;
  axes.rest.grace = 7;
  axes.window = 256;
  return axes;
}

TEST(EvalGrid, HasEveryPairThatExists) {
  const auto points = EvalGrid(SomeAxes());
  ASSERT_TRUE(points.ok()) << points.status();
  std::vector<std::string> names;
  for (const EvalPoint& point : *points) {
    names.push_back(point.label + " " + point.storage + " " + std::to_string(point.length()));
    EXPECT_EQ(point.policy.chunk_size, 16);
    // Each policy gets what it reads, and nothing else: the rest would be refused.
    const bool h2o = point.policy.policy.find("h2o") != std::string::npos;
    EXPECT_EQ(point.policy.grace, h2o ? point.length() / 4 : 0);
    EXPECT_EQ(point.policy.sinks.has_value(), point.policy.policy != "dense");
    EXPECT_EQ(point.policy.normalize_scores, point.policy.policy == "h2o_vnorm");
  }
  EXPECT_THAT(names, ElementsAre("dense plain 256", "dense int8 256", "last_recent plain 128",
                                 "last_recent plain 64", "last_recent int8 128",
                                 "last_recent int8 64", "h2o_vnorm+norm plain 128",
                                 "h2o_vnorm+norm plain 64", "h2o_vnorm+norm int8 128",
                                 "h2o_vnorm+norm int8 64", "qh2o int8 128", "qh2o int8 64"));
}

TEST(EvalGrid, ChunksAreAsLargeAsFitsUnlessAskedFor) {
  EvalAxes axes = SomeAxes();
  axes.policies = {"dense", "last_recent", "h2o"};
  axes.storages = {"plain"};
  axes.rest.chunk_size.reset();
  const auto points = EvalGrid(axes);
  ASSERT_TRUE(points.ok()) << points.status();
  std::vector<int> chunks;
  for (const EvalPoint& point : *points) chunks.push_back(*point.policy.chunk_size);
  // 128 and 64 slots, less 4 sinks, a ring of a quarter for h2o, and what a chunk may exceed by.
  EXPECT_THAT(chunks, ElementsAre(512, 120, 56, 88, 40));
}

TEST(EvalGrid, RefusesWhatCannotBe) {
  const auto error_of = [](void (*change)(EvalAxes&)) {
    EvalAxes axes = SomeAxes();
    change(axes);
    return std::string(EvalGrid(axes).status().message());
  };
  EXPECT_THAT(error_of([](EvalAxes& a) { a.policies = {"lru"}; }), HasSubstr("lru"));
  EXPECT_THAT(error_of([](EvalAxes& a) { a.policies = {"dense+norm"}; }), HasSubstr("normalise"));
  EXPECT_THAT(error_of([](EvalAxes& a) { a.policies = {"h2o_original"}; }), HasSubstr("batch"));
  EXPECT_THAT(error_of([](EvalAxes& a) { a.fractions = {"1/0"}; }), HasSubstr("--fractions"));
  EXPECT_THAT(error_of([](EvalAxes& a) { a.fractions = {"3/2"}; }), HasSubstr("--fractions"));
  EXPECT_THAT(error_of([](EvalAxes& a) { a.fractions = {"0.0001"}; }), HasSubstr("0 slots"));
  EXPECT_THAT(error_of([](EvalAxes& a) { a.grace = "nan"; }), HasSubstr("--grace"));
  EXPECT_THAT(error_of([](EvalAxes& a) { a.lengths = {257}; }), HasSubstr("--lengths"));
}

EvalTable SomeTable() {
  EvalTable table{
      .title = "tiny <model>", .windows = 2, .window = 256, .dense_bytes = 4 << 20, .rows = {}};
  const auto points = EvalGrid(SomeAxes());
  for (const EvalPoint& point : *points) {
    EvalRow row{.point = point, .all = {}, .evicted = {}, .lane_bytes = 1 << 20};
    row.all = {.tokens = 510,
               .nll = std::log(8.0),
               .delta_nll = 0.0625,
               .delta_nll_error = 0.01,
               .divergence = 0.03};
    if (point.policy.policy != "dense") {
      row.evicted = {.tokens = 254,
                     .nll = 2,
                     .delta_nll = -0.125,
                     .delta_nll_error = {},
                     .divergence = 0.0625};
    }
    table.rows.push_back(row);
  }
  return table;
}

TEST(EvalTable, IsMarkdown) {
  const std::string text = ToMarkdown(SomeTable());
  EXPECT_THAT(text, HasSubstr("tiny <model>; 2 windows of 256 tokens"));
  EXPECT_THAT(text, HasSubstr("| dense | int8 | 256 | 8.000 | +0.0625 ± 0.0100 | 0.0300 |  |  | "
                              "1.00 | 25 % |\n"));
  EXPECT_THAT(text, HasSubstr("| last_recent | plain | 64 | 8.000 | +0.0625 ± 0.0100 | 0.0300 | "
                              "-0.1250 | 0.0625 | 1.00 | 25 % |\n"));
}

TEST(EvalTable, IsJson) {
  const nlohmann::json json = ToJson(SomeTable());
  ASSERT_EQ(json.size(), 12u);
  EXPECT_EQ(json[3]["name"], "eval/last_recent/plain/64");
  EXPECT_EQ(json[3]["evicting"]["tokens"], 254);
  EXPECT_FALSE(json[3]["evicting"].contains("delta_nll_error"));
  EXPECT_DOUBLE_EQ(json[3]["perplexity"], 8);
  EXPECT_EQ(json[0]["evicting"], nlohmann::json({{"tokens", 0}}));
}

TEST(EvalTable, BecomesALineForEachPolicyAndStorage) {
  const Plot plot = ToPlot(SomeTable());
  ASSERT_EQ(plot.lines.size(), 7u);
  EXPECT_THAT(plot.lines[0].points, ElementsAre(std::pair(1.0, 0.03)));  // dense never evicts
  EXPECT_THAT(plot.lines[2].points, ElementsAre(std::pair(1.0, 0.0625), std::pair(1.0, 0.0625)));
}

int Count(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(SvgPlot, PutsPointsOnLogarithmicAxes) {
  // Axes run from 1 to 100 and from 0.01 to 1: the middle point stands in the middle of both.
  const std::string svg =
      ToSvg({.title = "a < b",
             .x_label = "x",
             .y_label = "y",
             .lines = {{"one", "s", {{1, 1}, {10, 0.1}, {100, 0.01}}}, {"two", "t", {{10, 0}}}}});
  EXPECT_THAT(svg, HasSubstr("<svg xmlns="));
  EXPECT_THAT(svg, HasSubstr("a &lt; b"));
  EXPECT_THAT(svg, HasSubstr("points=\"80.0,46.0 370.0,243.0 660.0,440.0 \""));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
  EXPECT_EQ(Count(svg, "<circle"), 3 + 1) << "three points and the legend";
  EXPECT_EQ(Count(svg, "<rect x"), 0) << "a point at 0 has no place";
  EXPECT_THAT(svg, Not(HasSubstr(">two<"))) << "nor has a line without points";
  for (const char* tick : {">1<", ">10<", ">100<", ">0.1<", ">0.05<"}) {
    EXPECT_THAT(svg, HasSubstr(tick));
  }
}

TEST(SvgPlot, OfNothingOrOnePointIsWhole) {
  EXPECT_THAT(ToSvg({}), Not(HasSubstr("nan")));
  const std::string svg =
      ToSvg({.title = "", .x_label = "", .y_label = "", .lines = {{"one", "s", {{10, 10}}}}});
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_EQ(Count(svg, "<circle"), 2);
}

TEST(ReferenceLogits, ComesBackByWindowAndRow) {
  auto logits = ReferenceLogits::Create(::testing::TempDir(), 3, 4, 2);
  ASSERT_TRUE(logits.ok()) << logits.status();
  for (int window : {2, 0, 1}) {
    for (int row : {2, 0}) {
      const float at = static_cast<float>(window * 100 + row * 10);
      ASSERT_TRUE(
          logits->Write(window, row, std::vector<float>{at, at + 1, at + 10, at + 11}).ok());
    }
  }
  std::vector<float> rows(4);
  ASSERT_TRUE(logits->Read(1, 1, rows).ok());
  EXPECT_THAT(rows, ElementsAre(110, 111, 120, 121));
  ASSERT_TRUE(logits->Read(2, 2, rows).ok());
  EXPECT_THAT(rows, ElementsAre(220, 221, 230, 231));
  EXPECT_EQ(logits->Read(2, 3, rows).code(), absl::StatusCode::kDataLoss);
}

TEST(ReferenceLogits, SaysWhatWouldFit) {
  const auto huge = ReferenceLogits::Create(::testing::TempDir(), 1 << 20, 1 << 20, 1 << 18);
  EXPECT_EQ(huge.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(huge.status().message()), HasSubstr("--windows"));
  const auto nowhere = ReferenceLogits::Create("/no/such/folder", 1, 1, 1);
  EXPECT_EQ(nowhere.status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace keyline
