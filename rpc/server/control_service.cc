#include "rpc/server/control_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "rpc/wire/cache_policy_proto.h"
#include "rpc/wire/reply_to_proto.h"
#include "rpc/wire/status_to_grpc.h"

namespace keyline {
namespace {

grpc::ServerUnaryReactor* Ok(grpc::CallbackServerContext* context) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

constexpr long kMaxWatchers = 16;

// A call that ends at once.
class EndedStream final : public grpc::ServerWriteReactor<v1::CacheEvent> {
 public:
  explicit EndedStream(const absl::Status& status) { Finish(StatusToGrpc(status)); }
  void OnDone() override { delete this; }
};

absl::Status CheckWatch(const v1::WatchCacheEventsRequest& request, int layers) {
  for (int i = 0; i < request.layers_size(); ++i) {
    if (request.layers(i) >= static_cast<uint32_t>(layers)) {
      return FieldError(absl::StrCat("layers[", i, "]"),
                        absl::StrCat("got ", request.layers(i),
                                     ", must be below the model's number of layers, ", layers));
    }
  }
  return absl::OkStatus();
}

}  // namespace

ControlService::ControlService(Options options, ServerFacts facts, RequestQueue& queue,
                               const CallGate& gate)
    : options_(std::move(options)),
      facts_(std::move(facts)),
      queue_(queue),
      gate_(gate),
      started_(absl::Now()) {}

grpc::ServerUnaryReactor* ControlService::GetServerInfo(grpc::CallbackServerContext* context,
                                                        const v1::GetServerInfoRequest* request,
                                                        v1::GetServerInfoResponse* response) {
  (void)request;
  response->set_version(facts_.version);
  *response->mutable_uptime() = DurationToProto(absl::Now() - started_);
  response->set_draining(gate_.closed());
  response->set_max_request_bytes(options_.max_request_bytes);
  response->set_max_text_bytes(options_.max_text_bytes);
  return Ok(context);
}

grpc::ServerUnaryReactor* ControlService::GetModelInfo(grpc::CallbackServerContext* context,
                                                       const v1::GetModelInfoRequest* request,
                                                       v1::GetModelInfoResponse* response) {
  (void)request;
  const ModelConfig& model = facts_.model;
  response->set_name(model.name);
  response->set_family(model.family);
  response->set_dtype(facts_.dtype);
  response->set_layers(model.layers);
  response->set_heads(model.heads);
  response->set_kv_heads(model.kv_heads);
  response->set_head_dim(model.head_dim);
  response->set_hidden_size(model.hidden_size);
  response->set_vocab_size(model.vocab_size);
  response->set_max_positions(model.max_positions);
  response->set_weight_bytes(facts_.weight_bytes);
  response->set_has_tokenizer(options_.has_tokenizer);
  response->mutable_eos_token_ids()->Add(model.eos_token_ids.begin(), model.eos_token_ids.end());
  if (model.bos_token_id >= 0) response->set_bos_token_id(model.bos_token_id);

  const CacheConfig& cache = facts_.cache;
  *response->mutable_default_cache() = LanePolicyToProto(cache.policy);
  if (cache.enabled.empty()) response->add_enabled_policies(cache.policy.policy);
  for (const std::string& policy : cache.enabled) response->add_enabled_policies(policy);
  response->set_storage(cache.storage);
  response->set_lanes(cache.lanes);
  response->set_lane_bytes(facts_.lane_bytes);
  return Ok(context);
}

grpc::ServerUnaryReactor* ControlService::GetPlacement(grpc::CallbackServerContext* context,
                                                       const v1::GetPlacementRequest* request,
                                                       v1::GetPlacementResponse* response) {
  (void)request;
  for (const StageFacts& stage : facts_.stages) {
    v1::Stage* row = response->add_stages();
    row->set_rank(stage.rank);
    row->set_host(stage.host);
    row->set_device(stage.device);
    row->set_first_layer(stage.first_layer);
    row->set_layers(stage.layers);
    row->set_has_embedding(stage.has_embedding);
    row->set_has_head(stage.has_head);
    row->set_weight_bytes(stage.weight_bytes);
    row->set_kv_bytes(stage.kv_bytes);
    row->set_workspace_bytes(stage.workspace_bytes);
  }
  return Ok(context);
}

grpc::ServerUnaryReactor* ControlService::GetLoad(grpc::CallbackServerContext* context,
                                                  const v1::GetLoadRequest* request,
                                                  v1::GetLoadResponse* response) {
  (void)request;
  *response = LoadToProto(queue_.load());
  return Ok(context);
}

grpc::ServerUnaryReactor* ControlService::GetCacheStats(grpc::CallbackServerContext* context,
                                                        const v1::GetCacheStatsRequest* request,
                                                        v1::GetCacheStatsResponse* response) {
  (void)request;
  *response = CacheStatsToProto(queue_.cache_stats());
  return Ok(context);
}

grpc::ServerWriteReactor<v1::CacheEvent>* ControlService::WatchCacheEvents(
    grpc::CallbackServerContext* context, const v1::WatchCacheEventsRequest* request) {
  (void)context;
  absl::Status status = CheckWatch(*request, facts_.model.layers);
  std::shared_ptr<void> place = watchers_;
  if (place.use_count() > kMaxWatchers + 1) {
    status.Update(absl::ResourceExhaustedError(
        absl::StrCat("there are ", kMaxWatchers, " watchers, the most that there may be")));
  }
  if (!status.ok()) return new EndedStream(status);
  auto writer =
      std::make_shared<CacheEventWriter>(sender_, *request, options_.watcher, std::move(place));
  writer->Hold();
  queue_.Watch(writer);
  return writer.get();
}

grpc::ServerUnaryReactor* ControlService::Drain(grpc::CallbackServerContext* context,
                                                const v1::DrainRequest* request,
                                                v1::DrainResponse* response) {
  (void)request;
  options_.drain();
  const EngineLoad load = queue_.load();
  response->set_running(load.running);
  response->set_waiting(load.waiting);
  return Ok(context);
}

}  // namespace keyline
