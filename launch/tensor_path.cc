#include "launch/tensor_path.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace keyline {
namespace {

// How many ranks below `rank` are on the same GPU.
int SharersBelow(const std::vector<RankPlace>& ranks, size_t rank) {
  return static_cast<int>(
      std::count_if(ranks.begin(), ranks.begin() + static_cast<std::ptrdiff_t>(rank),
                    [&](const RankPlace& other) {
                      return other.host == ranks[rank].host && other.device == ranks[rank].device;
                    }));
}

}  // namespace

absl::StatusOr<TensorPath> ChooseTensorPath(const std::string& transport, bool threads,
                                            const std::vector<RankPlace>& ranks, int rank) {
  const bool demanded = transport == "nccl";
  const auto has_gpu = [&](size_t r) { return absl::StartsWith(ranks[r].device, "cuda:"); };
  bool shared = false;
  bool one_host = true;
  for (size_t r = 0; r < ranks.size(); ++r) {
    if (has_gpu(r) != has_gpu(0)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--device: rank 0 has ", ranks[0].device, ", rank ", r, " has ", ranks[r].device,
          "; their layers and activations have different formats: give all ranks GPUs, or none"));
    }
    shared = shared || SharersBelow(ranks, r) > 0;
    one_host = one_host && ranks[r].host == ranks[0].host;
  }
  if (!has_gpu(0) && demanded) {
    return absl::InvalidArgumentError(absl::StrCat("--transport nccl: rank 0 has ", ranks[0].device,
                                                   ", which is no GPU; use auto or host"));
  }
  if (!has_gpu(0) || transport == "host" || ranks.size() == 1) return TensorPath{};
  // Ranks as threads have hung with NCCL on several GPUs where processes ran. Suspected, not shown:
  // a CUDA call that waits for a GPU in a receive holds what the sender's thread needs.
  if (threads && !demanded) return TensorPath{};
  if (!shared) return TensorPath{.nccl = true, .nccl_host = ""};
  if (!demanded) return TensorPath{};
  if (threads || !one_host) {
    return absl::InvalidArgumentError(
        absl::StrCat("--transport nccl: ranks share a GPU, which NCCL only lets processes of one "
                     "host do; use auto or host, give each a --device of its own, or ",
                     threads ? "start them by mpirun" : "use one host"));
  }
  return TensorPath{.nccl = true,
                    .nccl_host = absl::StrCat(ranks[rank].host, ".", SharersBelow(ranks, rank))};
}

}  // namespace keyline
