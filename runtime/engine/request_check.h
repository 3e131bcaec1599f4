// Whether a pipeline can serve a request, and what a request's cache looked like at its end.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "runtime/engine/cache_events.h"
#include "runtime/engine/request.h"
#include "runtime/engine/sequence.h"
#include "runtime/pipeline/pipeline_spec.h"
#include "runtime/text/tokenizer.h"

namespace keyline {

// INVALID_ARGUMENT names field, limit, what was given, and what would fit. REQUIRES: request.cache.
absl::Status CheckRequest(const Request& request, const PipelineSpec& spec,
                          const ModelConfig& model, bool has_tokenizer);

// Fills in what the request leaves to the server, and what only its prompt tells: the policy, the
// range that protect_until means (INVALID_ARGUMENT where it means none), the chunk size. Before
// CheckRequest. `tokenizer` may be null.
absl::Status CompleteRequest(Request& request, const PipelineSpec& spec,
                             const Tokenizer* tokenizer);

// Lengths of the chunks in which the request's given tokens are processed. REQUIRES: CheckRequest
// was OK.
std::vector<int> ChunksOf(const Request& request, const PipelineSpec& spec);

CacheReport ReportCache(const Sequence& sequence, const PipelineSpec& spec,
                        const DecoderModel& model);

// One a layer, with nothing in use yet.
std::vector<LayerCacheStats> EmptyCacheStats(const PipelineSpec& spec, const DecoderModel& model);

}  // namespace keyline
