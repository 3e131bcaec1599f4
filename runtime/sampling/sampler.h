// Sampler: turns rows of logits into tokens, with the sampling parameters of each lane kept on the
// device. Lives on the last rank. Thread: the rank's own.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "kernels/device/host_block.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/batch.h"

namespace keyline {

struct TopTokens {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
};

class Sampler {
 public:
  // Draws that can be on their way at the same time.
  static constexpr int kPlaces = 2;

  // `max_rows`: most rows of logits of one call.
  static absl::StatusOr<Sampler> Make(Device& device, int lanes, int max_rows);
  static size_t BytesFor(int lanes, int max_rows);  // on the device

  void SetLane(Stream& s, int lane, const SamplingParams& params);
  // logits: float32 [n, vocab]; lanes, positions: int32 [n], device. Enqueues only.
  void Sample(Stream& s, TensorView logits, const int32_t* lanes, const int32_t* positions);
  // Sends what the last Sample drew for its n rows on its way to the host. Enqueues only. Returns
  // its place there, one of kPlaces, which are taken in turn.
  int Fetch(Stream& s, int rows);
  // The token that Sample drew last for each lane: int32 [lanes], device.
  const int32_t* drawn() const { return drawn_.view().as<int32_t>(); }
  // Whether Fetched would return without waiting.
  bool HasCome(int place) const { return draws_.at(place).there->Reached(); }
  // Waits until it has come, not for what was enqueued later.
  std::span<const SampledToken> Fetched(Stream& s, int place);
  // The `count` likeliest tokens of each row. Waits for the stream.
  std::vector<TopTokens> Top(Stream& s, TensorView logits, int count);
  // log softmax(logits[i])[targets[i]]. Waits for the stream.
  std::span<const float> LogProbs(Stream& s, TensorView logits, const int32_t* targets);

 private:
  Sampler() = default;
  Tensor params_;        // SamplingParams [lanes]
  Tensor sampled_;       // SampledToken [max_rows]
  Tensor drawn_;         // int32 [lanes]
  Tensor top_tokens_;    // int32 [max_rows, kMaxTopLogProbs]
  Tensor top_logprobs_;  // float32, the same; also the target's log-probabilities
  std::vector<SamplingParams> host_params_;
  struct Draw {
    HostBlock tokens;  // SampledToken [max_rows]
    std::unique_ptr<Event> there;
    int rows = 0;
  };
  std::array<Draw, kPlaces> draws_;
  int next_place_ = 0;
  int max_rows_ = 0;
  std::vector<float> host_logprobs_;
};

}  // namespace keyline
