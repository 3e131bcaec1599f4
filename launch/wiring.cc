#include "launch/wiring.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "kernels/device/status_macros.h"
#include "runtime/cache/chunk_plan.h"
#include "runtime/config/model_config.h"
#include "runtime/text/end_marker.h"
#include "runtime/transport/communicator.h"

namespace keyline {
namespace {

int EnvironmentInt(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  int value = 0;
  return text != nullptr && absl::SimpleAtoi(text, &value) ? value : otherwise;
}

// Ranks on this host.
int RanksHere(int ranks) {
  const int here = StartedByMpi() ? EnvironmentInt("OMPI_COMM_WORLD_LOCAL_SIZE", ranks) : ranks;
  return std::max(here, 1);
}

// Ranks that one device of this host is dealt to, at most.
int SharingRanks(const LaunchOptions& options, int ranks) {
  const std::vector<std::string> devices = absl::StrSplit(options.device, ',');
  const int different =
      static_cast<int>(std::set<std::string>(devices.begin(), devices.end()).size());
  return (RanksHere(ranks) + different - 1) / different;
}

absl::Status CheckProtectUntil(const LaunchOptions& options, const OpenedModel& opened) {
  if (options.kv.protect_until.empty()) return absl::OkStatus();
  const auto bad = [](const std::string& why) {
    return absl::InvalidArgumentError(absl::StrCat("--kv-protect-until: ", why));
  };
  if (!options.kv_protect.empty()) return bad("excludes --kv-protect; give one of the two");
  if (opened.tokenizer == nullptr) return bad("this model has no tokenizer; use --kv-protect A:B");
  const absl::Status expression = CheckEndMarker(options.kv.protect_until);
  return expression.ok() ? absl::OkStatus() : bad(std::string(expression.message()));
}

absl::Status ParseProtect(const std::string& text, LanePolicy& policy) {
  if (text.empty()) return absl::OkStatus();
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &policy.protect_begin) ||
      !absl::SimpleAtoi(parts[1], &policy.protect_end) || policy.protect_begin < 0 ||
      policy.protect_end < policy.protect_begin) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-protect: '", text, "' is no token range; write A:B with 0 <= A <= B"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<OpenedModel> OpenModel(const std::string& path, NeedTokenizer need) {
  if (path.empty()) {
    return absl::InvalidArgumentError(
        "--model is missing: a Hugging Face directory or a .gguf file");
  }
  OpenedModel opened;
  ASSIGN_OR_RETURN(opened.checkpoint, OpenCheckpoint(path));
  ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(*opened.checkpoint));
  opened.name = config.name;
  ASSIGN_OR_RETURN(opened.model, MakeModel(config));
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = LoadTokenizer(path);
  if (tokenizer.ok()) {
    opened.tokenizer = *std::move(tokenizer);
  } else if (need == NeedTokenizer::kYes) {
    return tokenizer.status();
  }
  return opened;
}

absl::Status FillShards(const Device& device, const DecoderModel& model, int ranks,
                        PipelineSpec& spec) {
  ASSIGN_OR_RETURN(const std::vector<size_t> layers, LayerBytes(device, model, spec));
  ASSIGN_OR_RETURN(spec.shards, PlanShards(layers, HeadBytes(device, model, spec), ranks));
  return absl::OkStatus();
}

absl::StatusOr<int> NumberOfRanks(const LaunchOptions& options) {
  if (!StartedByMpi()) return std::max(options.ranks, 1);
  const int world = EnvironmentInt("OMPI_COMM_WORLD_SIZE", std::max(options.ranks, 1));
  if (options.ranks != 0 && options.ranks != world) {
    return absl::InvalidArgumentError(
        absl::StrCat("--ranks: ", options.ranks, " under mpirun with ", world,
                     " processes; leave it out or say --ranks ", world));
  }
  return world;
}

std::string DeviceOfRank(const LaunchOptions& options, int rank) {
  const std::vector<std::string> devices = absl::StrSplit(options.device, ',');
  // A process counts the ranks of its own host: mpirun may place rank 1 on the next one.
  if (StartedByMpi() && rank == EnvironmentInt("OMPI_COMM_WORLD_RANK", -1)) {
    rank = EnvironmentInt("OMPI_COMM_WORLD_LOCAL_RANK", rank);
  }
  return devices[rank % devices.size()];
}

int ThreadsOfRank(const LaunchOptions& options, int ranks) {
  if (options.threads > 0) return options.threads;
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, cores / RanksHere(ranks));
}

absl::StatusOr<PipelineSpec> MakeSpec(const LaunchOptions& options, const OpenedModel& opened,
                                      const PipelineNeeds& needs) {
  const ModelConfig& config = opened.model->config();
  PipelineSpec spec;
  if (options.dtype == "f32") {
    spec.dtype = DType::kF32;
  } else if (options.dtype == "bf16") {
    spec.dtype = DType::kBF16;
  } else {
    spec.dtype = config.checkpoint_dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
  }
  // A file that is quantised is used as it is, as one expects, unless a number format is asked for.
  // Not on GPUs, where blocks are slower than plain weights for long prompts and small models.
  const bool as_in_file = options.weight_storage == "auto" && options.dtype == "auto" &&
                          !absl::StartsWith(DeviceOfRank(options, 0), "cuda");
  const std::string storage = options.weight_storage != "auto" ? options.weight_storage
                              : as_in_file                     ? "file"
                                                               : "plain";
  ASSIGN_OR_RETURN(const WeightStorage weight_storage, ParseWeightStorage(storage));
  spec.weights = WeightFormats(weight_storage, opened.weights());
  spec.max_positions = static_cast<int>(config.max_positions);
  spec.cache.storage = options.kv_storage;
  spec.cache.lanes = options.lanes > 0 ? options.lanes : needs.lanes;
  LanePolicy& policy = spec.cache.policy;
  policy = options.kv;
  RETURN_IF_ERROR(ParseProtect(options.kv_protect, policy));
  RETURN_IF_ERROR(CheckProtectUntil(options, opened));
  spec.cache.enabled = options.kv_enabled;
  if (!spec.cache.enabled.empty()) spec.cache.enabled.push_back(policy.policy);
  policy.cache_length = options.kv_cache_length;
  if (policy.cache_length.empty()) {
    policy.cache_length = {needs.cache_length > 0 ? needs.cache_length : spec.max_positions};
  }
  if (policy.cache_length.size() != 1 &&
      policy.cache_length.size() != static_cast<size_t>(config.layers)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-cache-length: ", policy.cache_length.size(), " numbers for a model of ",
                     config.layers, " layers; give 1 or ", config.layers));
  }
  for (int l = 0; l < config.layers; ++l) spec.cache_lengths.push_back(policy.length_of(l));

  ASSIGN_OR_RETURN(const int ranks, NumberOfRanks(options));
  spec.pipeline_depth = options.pipeline_depth > 0 ? options.pipeline_depth : ranks;
  // Room for a whole chunk beside a decode token of every lane, so that neither starves.
  if (!policy.chunk_size.has_value()) {
    policy.chunk_size = DefaultChunkSize(policy, spec.cache_lengths, kDefaultChunkSize);
  }
  const int longest_chunk = *policy.chunk_size + kChunkOvershoot;
  const int least = spec.cache.lanes + longest_chunk;
  spec.max_pass_tokens = std::max(needs.max_pass_tokens, least);
  if (options.max_pass_tokens > 0) {
    if (options.max_pass_tokens < least) {
      return absl::InvalidArgumentError(
          absl::StrCat("--max-pass-tokens: ", options.max_pass_tokens, " is less than --lanes (",
                       spec.cache.lanes, ") + --kv-chunk (", *policy.chunk_size, ") + 4 = ", least,
                       "; raise it, or lower --kv-chunk"));
    }
    spec.max_pass_tokens = options.max_pass_tokens;
  }
  return spec;
}

absl::StatusOr<RankMemory> MemoryOfRank(const LaunchOptions& options, const Device& device,
                                        int ranks) {
  RankMemory memory;
  memory.mode = options.offload == "all"    ? Offload::kAll
                : options.offload == "none" ? Offload::kNone
                                            : Offload::kAuto;
  memory.limit = device.memory().free_bytes / SharingRanks(options, ranks);
  // A GPU's driver and libraries take memory as they are first used.
  if (!device.memory_is_host()) memory.limit -= memory.limit / 16;
  memory.where = absl::StrCat("free on ", device.name());
  if (!options.device_memory.empty()) {
    ASSIGN_OR_RETURN(memory.limit, FlagBytes("--device-memory", options.device_memory));
    memory.where = "allowed by --device-memory";
  }
  return memory;
}

absl::StatusOr<OffloadPlan> PlanRank(const LaunchOptions& options, const Device& device,
                                     const DecoderModel& model, const PipelineSpec& spec,
                                     int rank) {
  const int ranks = static_cast<int>(spec.shards.size());
  ASSIGN_OR_RETURN(const RankMemory memory, MemoryOfRank(options, device, ranks));
  ASSIGN_OR_RETURN(const StageNeeds needs, NeedsOfStage(device, model, spec, rank));
  absl::StatusOr<OffloadPlan> plan = PlanOffload(needs, memory.mode, memory.limit);
  if (!plan.ok()) {
    const auto mebibytes = [&](int resident) {
      return absl::StrCat((LeastBytes(needs, resident) + (1 << 20) - 1) >> 20, "MiB");
    };
    const std::string would_do =
        memory.mode == Offload::kNone
            ? absl::StrCat(mebibytes(static_cast<int>(needs.layers.size())), " would do, or ",
                           mebibytes(0), " with --offload auto")
            : absl::StrCat(mebibytes(0), " would do");
    return absl::Status(plan.status().code(),
                        absl::StrCat("rank ", rank, " ", std::string(plan.status().message()), " ",
                                     memory.where, "; ", would_do,
                                     "; a lower --kv-cache-length, fewer --lanes, a smaller "
                                     "--max-pass-tokens or more ranks need less"));
  }
  if (!plan->streams()) return plan;
  if (!options.host_memory.empty()) {
    ASSIGN_OR_RETURN(plan->host_bytes, FlagBytes("--host-memory", options.host_memory));
    return plan;
  }
  // A tenth is left to everybody else.
  ASSIGN_OR_RETURN(const auto host, OpenDevice("cpu", {.threads = 1}));
  const size_t share = host->memory().free_bytes / RanksHere(ranks) / 10 * 9;
  const size_t taken = device.memory_is_host() ? plan->device.total() : 0;
  plan->host_bytes = share - std::min(share, taken);
  return plan;
}

}  // namespace keyline
