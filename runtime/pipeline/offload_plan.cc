#include "runtime/pipeline/offload_plan.h"

#include <glog/logging.h>

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/pipeline/batch_upload.h"

namespace keyline {
namespace {

constexpr int kLeastSlots = 2;  // one is read while the other is filled
constexpr int kMostSlots = 3;   // more hide nothing more
// Share of the room beside caches and workspace that hidden states of a long step may take.
constexpr size_t kStepShare = 8;

std::vector<bool> Spread(int layers, int streamed) {
  std::vector<bool> which(layers);
  for (int l = 0; l < layers; ++l) {
    which[l] = (l + 1) * streamed / layers > l * streamed / layers;
  }
  return which;
}

// Bytes on the device of layers of which some stream: those that stay, and the slots.
size_t LayerBytesOnDevice(const std::vector<size_t>& layers, const std::vector<bool>& streamed,
                          int slots) {
  size_t stay = 0;
  size_t widest = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    if (streamed[l]) {
      widest = std::max(widest, layers[l]);
    } else {
      stay += layers[l];
    }
  }
  return stay + slots * widest;
}

size_t Fixed(const StageNeeds& needs) { return needs.ends + needs.kv + needs.workspace; }

std::string Mebibytes(size_t bytes) {
  return absl::StrCat((bytes + (size_t{1} << 20) - 1) >> 20, " MiB");
}

absl::Status TooLittle(const StageBytes& bytes, size_t limit) {
  return absl::ResourceExhaustedError(
      absl::StrCat("needs ", Mebibytes(bytes.total()), " (weights ", Mebibytes(bytes.weights),
                   ", caches ", Mebibytes(bytes.kv), ", workspace ", Mebibytes(bytes.workspace),
                   ") where ", limit >> 20, " MiB are"));
}

}  // namespace

int OffloadPlan::streamed_layers() const {
  return static_cast<int>(std::count(streamed.begin(), streamed.end(), true));
}

absl::StatusOr<StageNeeds> NeedsOfStage(const Device& device, const DecoderModel& model,
                                        const PipelineSpec& spec, int rank) {
  const ShardRange& shard = spec.shards.at(rank);
  ASSIGN_OR_RETURN(const StageBytes all, BytesOfStage(device, model, spec, rank));
  StageNeeds needs;
  for (int l = shard.first_layer; l < shard.first_layer + shard.layers; ++l) {
    needs.layers.push_back(LayOut(device, LayerTensors(model, spec, l), spec.dtype).bytes);
  }
  needs.ends = all.weights - std::accumulate(needs.layers.begin(), needs.layers.end(), size_t{0});
  needs.kv = all.kv;
  needs.workspace = all.workspace;
  const int pass = spec.max_pass_tokens;
  needs.pass_tokens = pass;
  // The last pass of a step must find room for a whole one.
  const int64_t longest = int64_t{spec.max_positions} * spec.cache.lanes + pass;
  needs.step_tokens = static_cast<int>(std::min<int64_t>(longest, kMostStepTokens + pass));
  needs.token_bytes = BytesOf(device.ActivationType(spec.dtype), model.widths().hidden) +
                      BatchUpload::BytesFor(0, 1, 0) - BatchUpload::BytesFor(0, 0, 0);
  needs.streaming_bytes = BatchUpload::BytesFor(spec.cache.lanes, 0, kSweepBatches);
  return needs;
}

absl::StatusOr<OffloadPlan> PlanOffload(const StageNeeds& needs, Offload mode, size_t limit) {
  const int layers = static_cast<int>(needs.layers.size());
  const size_t all = std::accumulate(needs.layers.begin(), needs.layers.end(), size_t{0});
  OffloadPlan plan;
  plan.step_tokens = needs.pass_tokens;
  plan.device = {.weights = needs.ends + all, .kv = needs.kv, .workspace = needs.workspace};
  if (mode != Offload::kAll && plan.device.total() <= limit) return plan;
  if (mode == Offload::kNone) return TooLittle(plan.device, limit);
  const size_t least = LeastBytes(needs, 0);
  plan.device.workspace += needs.streaming_bytes;
  plan.device.weights = least - plan.device.kv - plan.device.workspace;
  if (least > limit) return TooLittle(plan.device, limit);

  const size_t room = limit - Fixed(needs) - needs.streaming_bytes;
  const size_t spare = limit - least;
  const size_t tokens = std::min<size_t>(needs.step_tokens - needs.pass_tokens,
                                         std::min(room / kStepShare, spare) / needs.token_bytes);
  const size_t for_layers = room - tokens * needs.token_bytes;
  plan.step_tokens = needs.pass_tokens + static_cast<int>(tokens);
  plan.slots = kLeastSlots;
  int streamed = layers;
  if (mode == Offload::kAuto) {
    // One layer less than all of them at least: not all fit.
    for (streamed = 1; streamed < layers; ++streamed) {
      if (LayerBytesOnDevice(needs.layers, Spread(layers, streamed), plan.slots) <= for_layers)
        break;
    }
  } else if (LayerBytesOnDevice(needs.layers, Spread(layers, layers), kMostSlots) <= for_layers) {
    plan.slots = kMostSlots;
  }
  plan.streamed = Spread(layers, streamed);
  for (int l = 0; l < layers; ++l) plan.streamed_bytes += plan.streamed[l] ? needs.layers[l] : 0;
  plan.device = {
      .weights = needs.ends + LayerBytesOnDevice(needs.layers, plan.streamed, plan.slots),
      .kv = needs.kv,
      .workspace = needs.workspace + needs.streaming_bytes + tokens * needs.token_bytes};
  return plan;
}

size_t LeastBytes(const StageNeeds& needs, int resident) {
  const int layers = static_cast<int>(needs.layers.size());
  CHECK(resident >= 0 && resident <= layers) << resident << " of " << layers;
  if (resident == layers) {
    return Fixed(needs) + LayerBytesOnDevice(needs.layers, std::vector<bool>(layers, false), 0);
  }
  return Fixed(needs) + needs.streaming_bytes +
         LayerBytesOnDevice(needs.layers, Spread(layers, layers - resident), kLeastSlots);
}

double StepSeconds(const OffloadPlan& plan, const StageNeeds& needs, double kv_bytes,
                   const LinkRates& rates) {
  const double weights = static_cast<double>(
      needs.ends + std::accumulate(needs.layers.begin(), needs.layers.end(), size_t{0}));
  const double reading = (weights + kv_bytes) / rates.read;
  if (!plan.streams()) return reading;
  const double copying = static_cast<double>(plan.streamed_bytes) / rates.link;
  return rates.overlaps ? std::max(reading, copying) : reading + copying;
}

}  // namespace keyline
