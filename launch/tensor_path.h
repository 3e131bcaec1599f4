// Which way tensors take between ranks: by NCCL between GPUs, else through host memory. A pure
// function of where the ranks are, so that all of them decide alike.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace keyline {

struct RankPlace {
  std::string host;
  std::string device;  // "cpu", "cuda:1"
};

struct TensorPath {
  bool nccl = false;
  std::string nccl_host;  // the host that NCCL is to see; empty: the true one
};

// `transport` is the flag's value: "auto", "host" or "nccl".
//
// auto: NCCL where every rank has a GPU to itself. Ranks that share one go through host memory,
// since NCCL refuses two on one GPU. "nccl" takes such processes (of one host) for processes of
// several hosts, which is slow and there to try the NCCL path on a machine with one GPU; for ranks
// that are `threads` of one process that cannot be. INVALID_ARGUMENT where "nccl" cannot be, and
// where some ranks have GPUs and others have none.
absl::StatusOr<TensorPath> ChooseTensorPath(const std::string& transport, bool threads,
                                            const std::vector<RankPlace>& ranks, int rank);

}  // namespace keyline
