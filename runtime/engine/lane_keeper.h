// LaneKeeper: who else, besides the scheduler, has a say about lanes: sessions that hold one while
// they are idle, and snapshots that lanes begin with. Thread: the engine's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/pipeline/step_plan.pb.h"

namespace keyline {

class Sequence;

// A lane's state after `tokens` tokens, in host memory: bytes of every layer of the model, whatever
// ranks they came from (KvCache::SaveLane). Immutable, so that forks and snapshots share it.
struct LaneImage {
  std::vector<std::string> layers;
  int tokens = 0;

  int64_t bytes() const {
    int64_t sum = 0;
    for (const std::string& layer : layers) sum += static_cast<int64_t>(layer.size());
    return sum;
  }
};
using LaneImagePtr = std::shared_ptr<const LaneImage>;

// A lane whose state a step brings back, and who hears of it.
struct LaneSave {
  int lane = -1;
  int tokens = 0;
  std::function<void(absl::StatusOr<LaneImagePtr>)> done;
};

// Tells those who wait what became of a step's saves. REQUIRES: `result` is that step's.
void FinishSaves(pipeline::StepResult& result, const std::vector<LaneSave>& saves);

class LaneKeeper {
 public:
  virtual ~LaneKeeper() = default;
  // Before each step: adds the lanes whose states are waited for, as long as saves->size() < room.
  virtual void AddSaves(int room, std::vector<LaneSave>* saves) = 0;
  // A lane that an idle session gives up to somebody who waits, or -1. If its state is not in host
  // memory yet, it is added to `saves`, which need room for it.
  virtual int GiveUpLane(int room, std::vector<LaneSave>* saves) = 0;
  // A queued sequence without a lane is about to get one: gives it the image to begin with, if
  // there is one. False: its state is still on its way; others may go first.
  virtual bool Prepare(Sequence& sequence) = 0;
  // The sequence stands at its prefix mark, which was not found: its lane may be worth keeping.
  virtual void AtPrefix(const Sequence& sequence, int room, std::vector<LaneSave>* saves) = 0;
};

}  // namespace keyline
