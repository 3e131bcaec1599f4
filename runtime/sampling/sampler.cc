#include "runtime/sampling/sampler.h"

#include <glog/logging.h>

#include <utility>

#include "kernels/device/status_macros.h"
#include "kernels/ops/ops.h"

namespace keyline {

absl::StatusOr<Sampler> Sampler::Make(Device& device, int lanes, int max_rows) {
  Sampler sampler;
  const auto bytes = [](size_t n) { return static_cast<int64_t>(n); };
  ASSIGN_OR_RETURN(sampler.params_,
                   Tensor::Allocate(device, DType::kU8, {bytes(lanes * sizeof(SamplingParams))}));
  ASSIGN_OR_RETURN(sampler.sampled_,
                   HostBlock::Allocate(device, kPlaces * max_rows * sizeof(SampledToken)));
  ASSIGN_OR_RETURN(sampler.drawn_, Tensor::Allocate(device, DType::kI32, {lanes}));
  ASSIGN_OR_RETURN(sampler.top_tokens_,
                   Tensor::Allocate(device, DType::kI32, {max_rows, kMaxTopLogProbs}));
  ASSIGN_OR_RETURN(sampler.top_logprobs_,
                   Tensor::Allocate(device, DType::kF32, {max_rows, kMaxTopLogProbs}));
  sampler.host_params_.resize(lanes);
  sampler.max_rows_ = max_rows;
  for (Draw& draw : sampler.draws_) draw.there = device.NewEvent();
  sampler.host_logprobs_.resize(max_rows);
  return sampler;
}

size_t Sampler::BytesFor(int lanes, int max_rows) {
  constexpr size_t kTopBytes = kMaxTopLogProbs * (sizeof(int32_t) + sizeof(float));
  return lanes * (sizeof(SamplingParams) + sizeof(int32_t)) + max_rows * kTopBytes;
}

void Sampler::SetLane(Stream& s, int lane, const SamplingParams& params) {
  host_params_.at(lane) = params;
  s.CopyAsync(params_.view().as<SamplingParams>() + lane, &host_params_[lane], sizeof(params));
}

int Sampler::TakePlace() { return std::exchange(next_place_, (next_place_ + 1) % kPlaces); }

void Sampler::Sample(Stream& s, TensorView logits, const int32_t* lanes, const int32_t* positions,
                     const int32_t* first_row) {
  CHECK_LE(logits.rows(), max_rows_);
  ops::Sample(s, reinterpret_cast<SampledToken*>(sampled_.data()), first_row, logits, lanes,
              positions, params_.view().as<SamplingParams>(), drawn_.view().as<int32_t>());
}

void Sampler::Mark(Stream& s, int place, int rows) {
  CHECK_LE(rows, max_rows_);
  Draw& draw = draws_.at(place);
  draw.rows = rows;
  draw.there->Record(s);
}

std::span<const SampledToken> Sampler::Fetched(Stream& s, int place) {
  const Draw& draw = draws_.at(place);
  s.WaitFor(*draw.there);
  return {reinterpret_cast<const SampledToken*>(sampled_.data()) + FirstRow(place),
          static_cast<size_t>(draw.rows)};
}

std::vector<TopTokens> Sampler::Top(Stream& s, TensorView logits, int count) {
  const size_t rows = logits.rows();
  CHECK_LE(rows, static_cast<size_t>(max_rows_));
  auto* tokens = top_tokens_.view().as<int32_t>();
  auto* logprobs = top_logprobs_.view().as<float>();
  ops::TopLogProbs(s, tokens, logprobs, count, logits);
  std::vector<TopTokens> top(rows);
  for (size_t r = 0; r < rows; ++r) {
    top[r].tokens.resize(count);
    top[r].logprobs.resize(count);
    s.CopyAsync(top[r].tokens.data(), tokens + r * count, count * sizeof(int32_t));
    s.CopyAsync(top[r].logprobs.data(), logprobs + r * count, count * sizeof(float));
  }
  s.Synchronize();
  return top;
}

std::span<const float> Sampler::LogProbs(Stream& s, TensorView logits, const int32_t* targets) {
  const size_t rows = logits.rows();
  CHECK_LE(rows, host_logprobs_.size());
  auto* logprobs = top_logprobs_.view().as<float>();
  ops::TokenLogProbs(s, logprobs, logits, targets);
  s.CopyAsync(host_logprobs_.data(), logprobs, rows * sizeof(float));
  s.Synchronize();
  return std::span(host_logprobs_).first(rows);
}

}  // namespace keyline
