// The arithmetic of a pipeline, where it can be done by hand.

#include "launch/bench/pipeline_simulation.h"

#include <vector>

#include "gtest/gtest.h"

namespace keyline::bench {
namespace {

TEST(PipelineSimulationTest, OneRankTakesTheSum) {
  PipelineSimulation one({.ranks = 1, .depth = 1, .turnaround = 0.5, .answer = 100});
  EXPECT_DOUBLE_EQ(one.Launch({.stage = {2}, .hop = {}, .after = -1}), 2.5);
  EXPECT_DOUBLE_EQ(one.Launch({.stage = {3}, .hop = {}, .after = 0}), 6);
  EXPECT_DOUBLE_EQ(one.Launch({.stage = {4}, .hop = {}, .after = 1}), 10.5);
  EXPECT_DOUBLE_EQ(one.busy(0), 9);
}

TEST(PipelineSimulationTest, TwoEqualStagesWorkAtOnce) {
  const SimulatedStep step{.stage = {1, 1}, .hop = {}};
  // One micro-batch: one stage waits while the other works. Two: both always work.
  EXPECT_DOUBLE_EQ(DecodeRate({.ranks = 2, .depth = 2}, 1, 8, step), 4);
  EXPECT_DOUBLE_EQ(DecodeRate({.ranks = 2, .depth = 2}, 2, 8, step), 8);
  // A depth of one keeps the second at home.
  EXPECT_DOUBLE_EQ(DecodeRate({.ranks = 2, .depth = 1}, 2, 8, step), 4);
  // P pieces through N equal stages: P + N - 1.
  EXPECT_DOUBLE_EQ(PromptSeconds({.ranks = 2, .depth = 2}, std::vector(10, step)), 11);
}

TEST(PipelineSimulationTest, ARingOfMicroBatchesIsAsFastAsItsSlowestStage) {
  const SimulatedStep step{.stage = {1, 1.5, 1, 1.25}, .hop = {}};
  EXPECT_NEAR(DecodeRate({.ranks = 4, .depth = 4}, 4, 1, step), 4 / 6.0, 1e-9);
  EXPECT_NEAR(DecodeRate({.ranks = 4, .depth = 5}, 5, 1, step), 5 / 7.5, 1e-9);
  EXPECT_NEAR(DecodeRate({.ranks = 4, .depth = 2}, 2, 1, step), 2 / 4.75, 1e-9);
}

TEST(PipelineSimulationTest, TheNextTokenWaitsForTheAnswer) {
  const PipelineSetting setting{.ranks = 2, .depth = 2, .turnaround = 0.25, .answer = 0.5};
  const SimulatedStep step{.stage = {1, 1},
                           .hop = {.one_way = 0.25, .send = 0.125, .receive = 0.125}};
  PipelineSimulation ring(setting);
  EXPECT_DOUBLE_EQ(ring.Launch(step), 0.25 + 1 + 0.25 + 1 + 0.5);
  SimulatedStep next = step;
  next.after = 0;
  EXPECT_DOUBLE_EQ(ring.Launch(next), 6);
  EXPECT_DOUBLE_EQ(DecodeRate(setting, 1, 1, step), 1 / 3.0);
}

TEST(PipelineSimulationTest, AnExtraMicroBatchHidesTheWayBack) {
  PipelineSetting setting{.ranks = 2, .depth = 2, .turnaround = 0, .answer = 0.5};
  const SimulatedStep step{.stage = {1, 1}, .hop = {}};
  EXPECT_DOUBLE_EQ(DecodeRate(setting, 2, 1, step), 2 / 2.5);
  setting.depth = 3;
  EXPECT_DOUBLE_EQ(DecodeRate(setting, 3, 1, step), 1);
}

TEST(PipelineSimulationTest, AHopTakesBothRanksTime) {
  // The sender copies for 0.25 and goes on; the receiver copies for 0.25 when it comes to it.
  const PipelineSetting setting{.ranks = 2, .depth = 8};
  const SimulatedStep step{.stage = {1, 1}, .hop = {.one_way = 0.5, .send = 0.25, .receive = 0.25}};
  EXPECT_DOUBLE_EQ(PromptSeconds(setting, {step}), 2.5);
  EXPECT_DOUBLE_EQ(PromptSeconds(setting, std::vector(5, step)), 2.5 + 4 * 1.25);
}

TEST(PipelineSimulationTest, EachRankIsOccupiedForItsOwnPartOfAHop) {
  const HopTime hop{.one_way = 1, .send = 0.25, .receive = 0.5};
  const auto seconds = [&](const std::vector<double>& stage) {
    return PromptSeconds({.ranks = static_cast<int>(stage.size()), .depth = 8},
                         std::vector(5, SimulatedStep{.stage = stage, .hop = hop}));
  };
  EXPECT_DOUBLE_EQ(seconds({2, 1}), 5 * 2 + 4 * 0.25 + 1 + 1) << "the sender sends";
  EXPECT_DOUBLE_EQ(seconds({1, 2}), 1 + 1 + 5 * 2 + 4 * 0.5) << "the receiver receives";
  EXPECT_DOUBLE_EQ(seconds({1, 1, 1}), 3 + 2 * 1 + 4 * (1 + 0.25 + 0.5))
      << "the one between does both";
}

TEST(PipelineSimulationTest, AMessageThatWaitedIsTakenInFaster) {
  // 0.75 of the way is that a sleeping receiver wakes up; one that comes late need not.
  const SimulatedStep step{.stage = {1, 3}, .hop = {.one_way = 1, .send = 0.125, .receive = 0.125}};
  PipelineSimulation simulation({.ranks = 2, .depth = 8});
  EXPECT_DOUBLE_EQ(simulation.Launch(step), 1 + 1 + 3);
  EXPECT_DOUBLE_EQ(simulation.Launch(step), 5 + 0.125 + 3);
}

TEST(PipelineSimulationTest, AMeetingHoldsTheSenderUp) {
  const PipelineSetting setting{.ranks = 2, .depth = 8};
  const HopTime mailbox{.one_way = 0.5, .together = false, .send = 0.5, .receive = 0.5};
  const HopTime meeting{.one_way = 0.5, .together = true};
  PipelineSimulation waits(setting), leaves(setting);
  for (int i = 0; i < 2; ++i) {
    waits.Launch({.stage = {1, 3}, .hop = meeting});
    leaves.Launch({.stage = {1, 3}, .hop = mailbox});
  }
  EXPECT_DOUBLE_EQ(waits.answered(1), 1 + 0.5 + 3 + 0.5 + 3);
  EXPECT_DOUBLE_EQ(leaves.answered(1), waits.answered(1));
  // The third message: its sender is late only where it had to wait for the second's receiver.
  EXPECT_DOUBLE_EQ(waits.Launch({.stage = {4, 3}, .hop = meeting}), 5 + 4 + 0.5 + 3);
  EXPECT_DOUBLE_EQ(leaves.Launch({.stage = {4, 3}, .hop = mailbox}), 8 + 0.5 + 3);
}

TEST(PipelineSimulationTest, ADeviceHidesItsHost) {
  PipelineSetting setting{.ranks = 1, .depth = 2, .turnaround = 0.5};
  const SimulatedStep step{.stage = {1}, .hop = {}};
  EXPECT_DOUBLE_EQ(DecodeRate(setting, 2, 3, step), 2);
  setting.devices_run_alone = true;
  EXPECT_DOUBLE_EQ(DecodeRate(setting, 2, 3, step), 3);
  EXPECT_DOUBLE_EQ(DecodeRate(setting, 1, 3, step), 2) << "nothing to do meanwhile";
}

TEST(PipelineSimulationTest, TheLastHostReceivesWhileItsDeviceWorks) {
  const SimulatedStep piece{
      .stage = {1, 2},
      .hop = {.one_way = 0.75, .send = 0.25, .receive = 0.5, .receive_device = 0.125},
      .after = -1,
      .samples = false};
  PipelineSetting setting{.ranks = 2, .depth = 8};
  EXPECT_DOUBLE_EQ(PromptSeconds(setting, std::vector(3, piece)), 1.75 + 2 + 2 * 2.5);
  setting.last_receives_ahead = true;
  EXPECT_DOUBLE_EQ(PromptSeconds(setting, std::vector(3, piece)), 1.75 + 2 + 2 * 2.125);
  // A step that samples keeps the host until its token is there.
  SimulatedStep sampled = piece;
  sampled.samples = true;
  EXPECT_DOUBLE_EQ(PromptSeconds(setting, std::vector(3, sampled)), 1.75 + 2 + 2 * 2.5);
  // A host that takes longer than its device is what all wait for.
  SimulatedStep slow = piece;
  slow.hop.one_way = slow.hop.receive = 3;
  EXPECT_DOUBLE_EQ(PromptSeconds(setting, std::vector(3, slow)), 1 + 3 * 3 + 2);
}

TEST(PipelineSimulationTest, TheLastHostAnswersWhatItsDeviceHasYetToDo) {
  const SimulatedStep piece{.stage = {1, 3}, .hop = {}, .after = -1, .samples = false};
  PipelineSetting setting{.ranks = 2, .depth = 1, .turnaround = 0, .answer = 0.25};
  EXPECT_DOUBLE_EQ(PromptSeconds(setting, std::vector(3, piece)), 3 * 4.25);
  setting.last_receives_ahead = true;
  // The first rank is held up by the second's device, not by its answers: 1, and 3 for each piece.
  EXPECT_DOUBLE_EQ(PromptSeconds(setting, std::vector(3, piece)), 1 + 3 * 3 + 0.25);
  SimulatedStep sampled = piece;
  sampled.samples = true;
  EXPECT_DOUBLE_EQ(PromptSeconds(setting, std::vector(3, sampled)), 3 * 4.25);
}

TEST(PipelineSimulationTest, TheIdealWaitsForHopsAlone) {
  const SimulatedStep step{.stage = {1, 1}, .hop = {.one_way = 0.5, .send = 0.25, .receive = 0.25}};
  const PipelineSetting setting{.ranks = 2, .depth = 1, .turnaround = 0.5, .answer = 0.25};
  const std::vector pieces(5, step);
  EXPECT_DOUBLE_EQ(PromptSeconds(setting, pieces), 5 * (0.5 + 2.5 + 0.25));
  EXPECT_DOUBLE_EQ(IdealPromptSeconds(setting, pieces), 2.5 + 4 * 1.25);
  EXPECT_DOUBLE_EQ(IdealPromptSeconds({.ranks = 1, .depth = 1, .turnaround = 0.5},
                                      std::vector(5, SimulatedStep{.stage = {2}, .hop = {}})),
                   10);
}

TEST(PipelineSimulationTest, PiecesThatSampleNothingDoNotFillAPipelineOfDevices) {
  const SimulatedStep piece{.stage = {1, 1, 1}, .hop = {}, .after = -1, .samples = false};
  PipelineSetting setting{.ranks = 3, .depth = 1};
  EXPECT_DOUBLE_EQ(PromptSeconds(setting, std::vector(4, piece)), 12);
  setting.devices_run_alone = true;
  EXPECT_DOUBLE_EQ(PromptSeconds(setting, std::vector(4, piece)), 6);
}

}  // namespace
}  // namespace keyline::bench
