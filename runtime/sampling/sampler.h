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
  // A place on the host for what a step draws, one of kPlaces, which are taken in turn.
  // REQUIRES: what was drawn there before has been read (Fetched).
  int TakePlace();
  // What Sample finds in device memory so that it draws to `place`: the index of its first row.
  int32_t FirstRow(int place) const { return place * max_rows_; }
  // logits: float32 [n, vocab]; lanes, positions: int32 [n], first_row: int32 [1], device. Writes
  // to the host by itself. Enqueues only.
  void Sample(Stream& s, TensorView logits, const int32_t* lanes, const int32_t* positions,
              const int32_t* first_row);
  // Marks that the last Sample drew `rows` rows to `place`. Enqueues only.
  void Mark(Stream& s, int place, int rows);
  // The token that Sample drew last for each lane: int32 [lanes], device.
  const int32_t* drawn() const { return drawn_.view().as<int32_t>(); }
  // What Mark records.
  Event& mark(int place) { return *draws_.at(place).there; }
  // Whether Fetched would return without waiting.
  bool HasCome(int place) const { return draws_.at(place).there->Reached(); }
  // The rows that Mark told of. Waits until they are there, not for what was enqueued later. Valid
  // until a Sample to the same place.
  std::span<const SampledToken> Fetched(Stream& s, int place);
  // The `count` likeliest tokens of each row. Waits for the stream.
  std::vector<TopTokens> Top(Stream& s, TensorView logits, int count);
  // log softmax(logits[i])[targets[i]]. Waits for the stream.
  std::span<const float> LogProbs(Stream& s, TensorView logits, const int32_t* targets);

 private:
  Sampler() = default;
  Tensor params_;        // SamplingParams [lanes]
  Tensor drawn_;         // int32 [lanes]
  Tensor top_tokens_;    // int32 [max_rows, kMaxTopLogProbs]
  Tensor top_logprobs_;  // float32, the same; also the target's log-probabilities
  std::vector<SamplingParams> host_params_;
  struct Draw {
    std::unique_ptr<Event> there;
    int rows = 0;
  };
  HostBlock sampled_;  // SampledToken [kPlaces, max_rows]
  std::array<Draw, kPlaces> draws_;
  int next_place_ = 0;
  int max_rows_ = 0;
  std::vector<float> host_logprobs_;
};

}  // namespace keyline
