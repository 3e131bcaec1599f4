// OffloadPlan: which layers of a rank stay on its device and which stream through it, so that all
// of it fits a limit. Pure arithmetic: `keyline plan` says what every other command will do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "runtime/model/decoder_model.h"
#include "runtime/pipeline/pipeline_spec.h"

namespace keyline {

enum class Offload {
  kAuto,  // as many layers stay as fit
  kNone,  // all layers stay
  kAll,   // all layers stream
};

// Batches that one sweep takes at most.
constexpr int kSweepBatches = 64;

struct OffloadPlan {
  std::vector<bool> streamed;  // one a layer of the rank; empty: all stay
  int slots = 0;               // that layers stream through
  // Tokens whose hidden states the device keeps at a time: so many of a prompt share one sweep of
  // the streamed layers. 0: those of one pass.
  int step_tokens = 0;
  size_t host_bytes = SIZE_MAX;  // most pinned memory for streamed layers; not PlanOffload's to say
  StageBytes device;             // weights: ends, layers that stay and slots
  size_t streamed_bytes = 0;     // that go over the link each time all layers run

  bool streams() const { return slots > 0; }
  // That go through a layer together at most.
  int batches() const { return streams() ? kSweepBatches : 1; }
  int streamed_layers() const;
};

// What the plan of one rank depends on.
struct StageNeeds {
  std::vector<size_t> layers;  // weights of each layer
  size_t ends = 0;             // embedding and head, where they are here
  size_t kv = 0;
  size_t workspace = 0;    // with the hidden states of one pass
  size_t token_bytes = 0;  // of one more token of a step
  int pass_tokens = 0;
  int step_tokens = 0;         // as many as are of use
  size_t streaming_bytes = 0;  // more of workspace where layers stream
};
absl::StatusOr<StageNeeds> NeedsOfStage(const Device& device, const DecoderModel& model,
                                        const PipelineSpec& spec, int rank);

// Layers that stream lie between those that stay as evenly as they go, so that each copy has work
// to hide behind. RESOURCE_EXHAUSTED says what it needs at least (but for kNone: two slots, ends,
// caches and workspace) "where N MiB are", for the caller to say where.
absl::StatusOr<OffloadPlan> PlanOffload(const StageNeeds& needs, Offload mode, size_t limit);

// The least limit with which `resident` layers stay. REQUIRES: resident <= layers.
size_t LeastBytes(const StageNeeds& needs, int resident);

// How a step that all layers run in is expected to take, in seconds, given bytes a second of the
// link and of reads on the device. `overlaps`: copies run beside the layers (not on the CPU).
struct LinkRates {
  double link = 0;
  double read = 0;
  bool overlaps = true;
};
// `kv_bytes`: of the caches that the step reads.
double StepSeconds(const OffloadPlan& plan, const StageNeeds& needs, double kv_bytes,
                   const LinkRates& rates);

// Tokens of a step beyond which a further sweep costs little beside the work itself.
constexpr int kMostStepTokens = 16384;

}  // namespace keyline
