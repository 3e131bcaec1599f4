#include "runtime/pipeline/shard_plan.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"

namespace keyline {

absl::StatusOr<std::vector<ShardRange>> PlanShards(const std::vector<size_t>& layer_bytes,
                                                   size_t head_bytes, int ranks) {
  const int layers = static_cast<int>(layer_bytes.size());
  if (ranks < 1 || ranks > layers) {
    return absl::InvalidArgumentError(absl::StrCat(
        "ranks: ", ranks, " ranks for a model of ", layers,
        " layers; each rank needs at least one layer, so 1 to ", layers, " ranks would do"));
  }
  std::vector<size_t> before(layers + 1, 0);  // bytes of the layers before l
  for (int l = 0; l < layers; ++l) before[l + 1] = before[l] + layer_bytes[l];

  // best[r][l]: the smallest possible largest stage when ranks 0..r hold layers 0..l-1.
  constexpr size_t kNever = std::numeric_limits<size_t>::max();
  std::vector<std::vector<size_t>> best(ranks, std::vector<size_t>(layers + 1, kNever));
  std::vector<std::vector<int>> first(ranks, std::vector<int>(layers + 1, 0));
  for (int r = 0; r < ranks; ++r) {
    for (int end = r + 1; end <= layers - (ranks - 1 - r); ++end) {
      for (int begin = r; begin < end; ++begin) {
        if (r == 0 && begin != 0) break;
        const size_t rest = r == 0 ? 0 : best[r - 1][begin];
        if (rest == kNever) continue;
        size_t own = before[end] - before[begin];
        if (r == ranks - 1) own += head_bytes;
        const size_t largest = std::max(rest, own);
        if (largest < best[r][end]) {
          best[r][end] = largest;
          first[r][end] = begin;
        }
      }
    }
  }
  std::vector<ShardRange> plan(ranks);
  for (int r = ranks - 1, end = layers; r >= 0; --r) {
    const int begin = first[r][end];
    plan[r] = {
        .first_layer = begin, .layers = end - begin, .embedding = r == 0, .head = r == ranks - 1};
    end = begin;
  }
  return plan;
}

}  // namespace keyline
