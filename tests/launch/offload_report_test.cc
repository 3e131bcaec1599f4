// What `keyline plan` says of layers that stream: figures from bytes and rates, and advice that
// holds.

#include "launch/offload/offload_report.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fixtures/tiny_pipeline.h"

namespace keyline {
namespace {

using ::testing::HasSubstr;
using testing::OpenTiny;
using testing::SpecOf;
using testing::TinyModel;
using testing::TinySetup;

constexpr int kLayers = 8;
constexpr int kLanes = 4;

class OffloadReportTest : public ::testing::Test {
 protected:
  OffloadReportTest()
      : tiny_(*OpenTiny(setup_)),
        spec_(SpecOf(setup_, *tiny_.model)),
        device_(*OpenDevice("cpu", {.threads = 1})) {}

  StageNeeds Needs() const { return *NeedsOfStage(*device_, *tiny_.model, spec_, 0); }
  std::vector<RankOutfit> Outfits(size_t limit) const {
    return {{.device = device_.get(),
             .mode = Offload::kAuto,
             .limit = limit,
             .rates = {.link = 1e8, .read = 1e9, .overlaps = true}}};
  }

  const TinySetup setup_{
      .random_layers = kLayers, .lanes = kLanes, .cache_length = 256, .policy = "last_recent"};
  TinyModel tiny_;
  PipelineSpec spec_;
  std::unique_ptr<Device> device_;
};

TEST_F(OffloadReportTest, SaysWhatStreamsAndHowFast) {
  // Three layers stay, two slots take two more; an eighth of the room is for the tokens of a step.
  const std::vector<RankOutfit> outfits =
      Outfits(LeastBytes(Needs(), 3) + 5 * Needs().layers[0] / 6);
  const auto outlook = Foresee(*tiny_.model, spec_, outfits);
  ASSERT_TRUE(outlook.ok()) << outlook.status();
  EXPECT_EQ(outlook->streamed_layers, 5);
  EXPECT_EQ(outlook->streamed_bytes, 5 * Needs().layers[0]);
  // The link is what limits it: all lanes cost what one sequence costs.
  const double sweep = static_cast<double>(outlook->streamed_bytes) / 1e8;
  EXPECT_DOUBLE_EQ(outlook->one_sequence, 1 / sweep);
  EXPECT_DOUBLE_EQ(outlook->all_lanes, kLanes / sweep);
  const std::string report = OffloadReport(*outlook, outfits, kLanes, {});
  EXPECT_THAT(report, HasSubstr("3 of 8 layers stay, 5 stream through 2 slots"));
  EXPECT_THAT(report, HasSubstr("0.1 GB/s"));
  const nlohmann::json json = OffloadJson(*outlook, outfits, {});
  EXPECT_EQ(json["streamed_layers"], 5);
  EXPECT_EQ(json["link_bytes_per_second"], 1e8);
  EXPECT_EQ(json["tokens_per_second"]["one_sequence"], outlook->one_sequence);
}

TEST_F(OffloadReportTest, AdvisesWhatIsFaster) {
  const std::vector<RankOutfit> outfits = Outfits(LeastBytes(Needs(), 3));
  const auto outlook = Foresee(*tiny_.model, spec_, outfits);
  ASSERT_TRUE(outlook.ok()) << outlook.status();
  const std::vector<Advice> advice = Advise(*tiny_.model, spec_, outfits, *outlook);
  ASSERT_GE(advice.size(), 2u);
  EXPECT_THAT(advice[0].flag, HasSubstr("--kv-cache-length "));
  EXPECT_THAT(advice[1].flag, HasSubstr("--lanes "));
  for (const Advice& a : advice) {
    EXPECT_GE(a.all_lanes ? a.outlook.all_lanes / outlook->all_lanes
                          : a.outlook.one_sequence / outlook->one_sequence,
              1.05)
        << a.flag;
  }
  const std::string report = OffloadReport(*outlook, outfits, kLanes, advice);
  EXPECT_THAT(report, HasSubstr("faster with " + advice[0].flag));
  EXPECT_EQ(OffloadJson(*outlook, outfits, advice)["faster"].size(), advice.size());
}

TEST_F(OffloadReportTest, HasNothingToSayWhereAllFits) {
  const std::vector<RankOutfit> outfits = Outfits(SIZE_MAX);
  const auto outlook = Foresee(*tiny_.model, spec_, outfits);
  ASSERT_TRUE(outlook.ok()) << outlook.status();
  EXPECT_EQ(outlook->streamed_bytes, 0u);
  EXPECT_TRUE(Advise(*tiny_.model, spec_, outfits, *outlook).empty());
  EXPECT_THAT(OffloadReport(*outlook, outfits, kLanes, {}), HasSubstr("all layers stay"));
  EXPECT_EQ(Foresee(*tiny_.model, spec_, Outfits(1000)).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace keyline
