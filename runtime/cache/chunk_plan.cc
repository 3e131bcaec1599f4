#include "runtime/cache/chunk_plan.h"

#include <glog/logging.h>

#include <algorithm>

namespace keyline {
namespace {

// Appends the chunks of tokens [done, end).
void AppendChunks(const std::vector<int>& lengths, int done, int end, int chunk_size,
                  std::vector<int>& chunks) {
  if (done == 0 && end > 0) {
    done = std::min(*std::min_element(lengths.begin(), lengths.end()), end);
    chunks.push_back(done);
  }
  while (done < end) {
    const int rest = end - done;
    int chunk = std::min(chunk_size, rest);
    int next_length = 0;  // the smallest not yet covered; 0: none
    for (int length : lengths) {
      if (length > done && (next_length == 0 || length < next_length)) next_length = length;
    }
    if (next_length > 0 && done + chunk >= next_length - kChunkOvershoot) {
      chunk = std::min(next_length - done, rest);
    }
    chunks.push_back(chunk);
    done += chunk;
  }
}

}  // namespace

int ChunkSize(const LanePolicy& policy) {
  const int asked = policy.chunk_size.value_or(kDefaultChunkSize);
  if (policy.max_chunk == 0) return asked;
  return std::min(asked, std::max(policy.max_chunk - kChunkOvershoot, 1));
}

std::vector<int> PlanChunks(const std::vector<int>& lengths, int tokens, int chunk_size, int done,
                            int boundary) {
  CHECK(!lengths.empty());
  CHECK_GE(chunk_size, 1);
  CHECK(done >= 0 && done <= tokens) << done << " of " << tokens << " tokens";
  CHECK(boundary >= 0 && boundary <= tokens) << boundary << " of " << tokens << " tokens";
  std::vector<int> chunks;
  if (boundary > done) {
    AppendChunks(lengths, done, boundary, chunk_size, chunks);
    done = boundary;
  }
  AppendChunks(lengths, done, tokens, chunk_size, chunks);
  return chunks;
}

}  // namespace keyline
