#include "runtime/engine/sessions.h"

#include <glog/logging.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/device/status_macros.h"
#include "runtime/cache/kv_cache.h"
#include "runtime/engine/request_check.h"
#include "runtime/files/quoted.h"

namespace keyline {
namespace {

constexpr int kMaxChunkSize = 1 << 20;

absl::Status Expired() {
  return absl::NotFoundError("the session has expired: it was the least recently used one");
}

}  // namespace

Sessions::Sessions(SessionLimits limits, const PipelineSpec& spec, const ModelConfig& model,
                   const Tokenizer* tokenizer, int64_t lane_bytes, std::function<void()> wake)
    : limits_(std::move(limits)),
      spec_(spec),
      model_(model),
      tokenizer_(tokenizer),
      lane_bytes_(lane_bytes),
      wake_(std::move(wake)),
      dir_(limits_.dir, limits_.max_sessions, limits_.max_bytes) {}

Sessions::~Sessions() { End(absl::UnavailableError("the server has shut down")); }

SessionInfo Sessions::InfoOf(const Session& session) {
  const SessionState& state = session.state;
  return {.id = session.id,
          .cache = state.cache,
          .busy = session.busy,
          .on_lane = session.lane >= 0,
          .tokens = state.tokens + static_cast<int>(state.pending.size()),
          .turns = state.turns,
          .last_token = state.last_token,
          .memory_bytes = state.image == nullptr ? 0 : state.image->bytes(),
          .created = session.created,
          .used = session.used};
}

absl::StatusOr<Sessions::SessionPtr> Sessions::Find(const std::string& id) const {
  if (limits_.max_sessions == 0) {
    return absl::FailedPreconditionError("this server has no sessions: --max-sessions is 0");
  }
  RETURN_IF_ERROR(ended_);
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) {
    return absl::NotFoundError(
        absl::StrCat("session ", Quoted(id), ": unknown, deleted, or expired since"));
  }
  return found->second;
}

absl::StatusOr<Sessions::SessionPtr> Sessions::FindIdle(const std::string& id) const {
  ASSIGN_OR_RETURN(SessionPtr session, Find(id));
  if (session->busy || !session->waiters.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "session '", id, "' is busy with another request; wait for its end, or fork it before"));
  }
  return session;
}

Sessions::SessionPtr Sessions::LeastRecentlyUsed(
    const std::function<bool(const Session&)>& wanted) const {
  SessionPtr oldest;
  for (const auto& [id, session] : sessions_) {
    if (session->busy || session->saving || !session->waiters.empty() || !wanted(*session)) {
      continue;
    }
    if (oldest == nullptr || session->used < oldest->used) oldest = session;
  }
  return oldest;
}

void Sessions::SetImage(Session& session, LaneImagePtr image) {
  if (session.state.image != nullptr) bytes_ -= session.state.image->bytes();
  session.state.image = std::move(image);
  if (session.state.image != nullptr) bytes_ += session.state.image->bytes();
}

void Sessions::Remove(const SessionPtr& session, const absl::Status& why, Calls* calls) {
  session->gone = true;
  SetImage(*session, nullptr);
  if (session->lane >= 0) freed_lanes_.push_back(std::exchange(session->lane, -1));
  for (auto& waiter : session->waiters) {
    calls->push_back([waiter = std::move(waiter), why] { waiter(why); });
  }
  session->waiters.clear();
  sessions_.erase(session->id);
}

bool Sessions::MakeRoom(int64_t bytes, const Session* but, Calls* calls) {
  if (bytes > limits_.max_bytes) return false;
  while (bytes_ + bytes > limits_.max_bytes) {
    const SessionPtr oldest = LeastRecentlyUsed(
        [&](const Session& session) { return &session != but && session.state.image != nullptr; });
    if (oldest == nullptr) return false;
    // One that has its lane yet loses only its copy.
    if (oldest->lane >= 0) {
      SetImage(*oldest, nullptr);
    } else {
      Remove(oldest, Expired(), calls);
    }
  }
  return true;
}

absl::Status Sessions::CheckState(const SessionState& state) const {
  if (lane_bytes_ > std::min(limits_.max_bytes, kMaxLaneStateBytes)) {
    return absl::FailedPreconditionError(
        absl::StrCat("a lane of this server has ", lane_bytes_, " bytes, and sessions at most ",
                     std::min(limits_.max_bytes, kMaxLaneStateBytes), " (--session-memory, or ",
                     kMaxLaneStateBytes, "); a smaller --kv-cache-length would do"));
  }
  const auto positions = static_cast<size_t>(spec_.max_positions);
  if (state.tokens < 0 || static_cast<size_t>(state.tokens) > positions ||
      state.pending.size() > positions - state.tokens) {
    return absl::InvalidArgumentError(absl::StrCat("the session has ", state.tokens, " + ",
                                                   state.pending.size(), " tokens; this model has ",
                                                   positions, " positions"));
  }
  for (const int32_t id : state.pending) {
    if (id < 0 || id >= model_.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("prefix: token id ", id, " is not within [0, ", model_.vocab_size, ")"));
    }
  }
  if (state.cache.chunk_size.value_or(0) > kMaxChunkSize || state.cache.max_chunk > kMaxChunkSize) {
    return absl::InvalidArgumentError(absl::StrCat("chunk_size: must be at most ", kMaxChunkSize));
  }
  const int tokens = std::max(state.tokens + static_cast<int>(state.pending.size()), 1);
  return ValidateLane(spec_.cache, spec_.cache_lengths, state.cache, tokens, 1,
                      spec_.max_pass_tokens);
}

absl::StatusOr<SessionInfo> Sessions::Add(SessionState state, Calls* calls) {
  RETURN_IF_ERROR(ended_);
  while (static_cast<int>(sessions_.size()) >= limits_.max_sessions) {
    const SessionPtr oldest = LeastRecentlyUsed([](const Session&) { return true; });
    if (oldest == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("there are ", sessions_.size(), " sessions (limit --max-sessions ",
                       limits_.max_sessions, ") and all are busy; try again later"));
    }
    Remove(oldest, Expired(), calls);
  }
  if (state.image != nullptr && !MakeRoom(state.image->bytes(), nullptr, calls)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the session's ", state.image->bytes(), " bytes do not fit beside what busy sessions hold ",
        "in --session-memory (", limits_.max_bytes, "); try again later"));
  }
  auto session = std::make_shared<Session>();
  session->id = RandomName();
  session->created = session->used = absl::Now();
  if (state.image != nullptr) bytes_ += state.image->bytes();
  session->state = std::move(state);
  sessions_[session->id] = session;
  return InfoOf(*session);
}

absl::StatusOr<SessionInfo> Sessions::Create(SessionOptions options) {
  if (limits_.max_sessions == 0) return Find("").status();
  SessionState state;
  // Chunk size and protected range, where they are left to the prompt, are the prefix's.
  Request opening;
  opening.prompt = options.prefix;
  opening.cache = std::move(options.cache);
  RETURN_IF_ERROR(CompleteRequest(opening, spec_, tokenizer_));
  state.cache = *std::move(opening.cache);
  if (state.cache.cache_length.empty()) state.cache.cache_length = spec_.cache.policy.cache_length;
  state.prefix = static_cast<int>(std::min<size_t>(options.prefix.size(), spec_.max_positions));
  state.pending = std::move(options.prefix);
  if (!state.pending.empty()) state.last_token = state.pending.back();
  RETURN_IF_ERROR(CheckState(state));
  Calls calls;
  absl::StatusOr<SessionInfo> info;
  {
    std::lock_guard lock(mutex_);
    info = Add(std::move(state), &calls);
  }
  for (const auto& call : calls) call();
  wake_();  // a lane may have been freed
  return info;
}

absl::StatusOr<SessionInfo> Sessions::Get(const std::string& id) const {
  std::lock_guard lock(mutex_);
  ASSIGN_OR_RETURN(const SessionPtr session, Find(id));
  return InfoOf(*session);
}

std::vector<SessionInfo> Sessions::List() const {
  std::lock_guard lock(mutex_);
  std::vector<SessionInfo> all;
  for (const auto& [id, session] : sessions_) all.push_back(InfoOf(*session));
  std::sort(all.begin(), all.end(), [](const SessionInfo& a, const SessionInfo& b) {
    return std::pair(a.created, a.id) < std::pair(b.created, b.id);
  });
  return all;
}

absl::Status Sessions::Delete(const std::string& id) {
  Calls calls;
  {
    std::lock_guard lock(mutex_);
    ASSIGN_OR_RETURN(const SessionPtr session, FindIdle(id));
    Remove(session, absl::NotFoundError("the session was deleted"), &calls);
  }
  for (const auto& call : calls) call();
  wake_();
  return absl::OkStatus();
}

void Sessions::WithImage(const std::string& id,
                         std::function<void(const absl::StatusOr<SessionState>&)> then) {
  absl::StatusOr<SessionState> state;
  {
    std::lock_guard lock(mutex_);
    const absl::StatusOr<SessionPtr> found = FindIdle(id);
    if (!found.ok()) {
      state = found.status();
    } else if (const SessionPtr session = *found;
               session->state.tokens == 0 || session->state.image != nullptr) {
      session->used = absl::Now();
      state = session->state;
    } else {
      session->used = absl::Now();
      session->waiters.push_back(std::exchange(then, nullptr));
    }
  }
  if (then) {
    then(state);
  } else {
    wake_();
  }
}

void Sessions::Fork(const std::string& id, Done<SessionInfo> done) {
  WithImage(id, [this, done = std::move(done)](const absl::StatusOr<SessionState>& state) {
    if (!state.ok()) return done(state.status());
    Calls calls;
    absl::StatusOr<SessionInfo> info;
    {
      std::lock_guard lock(mutex_);
      info = Add(*state, &calls);
    }
    for (const auto& call : calls) call();
    wake_();
    done(std::move(info));
  });
}

void Sessions::Save(const std::string& id, Done<SavedSession> done) {
  if (const absl::Status usable = dir_.Usable(); !usable.ok()) return done(usable);
  WithImage(id, [this, done = std::move(done)](const absl::StatusOr<SessionState>& state) {
    if (!state.ok()) return done(state.status());
    disk_.Run(
        [this, state = *state, done] { done(dir_.Write(EncodeSession(state, limits_.model))); });
  });
}

absl::StatusOr<SessionInfo> Sessions::Restore(const std::string& name) {
  if (limits_.max_sessions == 0) return Find("").status();
  ASSIGN_OR_RETURN(const std::string bytes, dir_.Read(name));
  ASSIGN_OR_RETURN(SessionState state, DecodeSession(bytes, limits_.model));
  if (state.cache.cache_length.empty() || !state.cache.chunk_size.has_value() ||
      (state.tokens > 0) != (state.image != nullptr) ||
      (state.image != nullptr && state.image->layers.size() != spec_.cache_lengths.size()) ||
      state.prefix < 0 || static_cast<size_t>(state.prefix) > state.pending.size() ||
      (state.prefix > 0 && state.tokens > 0) || state.last_token < -1 ||
      state.last_token >= model_.vocab_size) {
    return absl::DataLossError("saved session: its fields contradict each other");
  }
  if (const absl::Status fits = CheckState(state); !fits.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("saved session: ", std::string(fits.message())));
  }
  Calls calls;
  absl::StatusOr<SessionInfo> info;
  {
    std::lock_guard lock(mutex_);
    info = Add(std::move(state), &calls);
  }
  for (const auto& call : calls) call();
  wake_();
  return info;
}

absl::StatusOr<std::vector<SavedSession>> Sessions::ListSaved() const { return dir_.List(); }

absl::Status Sessions::DeleteSaved(const std::string& name) { return dir_.Delete(name); }

absl::Status Sessions::Claim(Request& request) {
  std::lock_guard lock(mutex_);
  ASSIGN_OR_RETURN(const SessionPtr session, FindIdle(request.session->id));
  const SessionState& state = session->state;
  if (state.turns != request.session->turn) {
    return absl::FailedPreconditionError(
        absl::StrCat("session '", session->id, "' has gone on meanwhile: it is at turn ",
                     state.turns, ", the request was made for turn ", request.session->turn));
  }
  request.cache = state.cache;
  request.first_position = state.tokens;
  request.prefix_tokens = request.prompt.empty() ? 0 : state.prefix;
  request.prompt.insert(request.prompt.begin(), state.pending.begin(), state.pending.end());
  session->busy = true;
  return absl::OkStatus();
}

void Sessions::Unclaim(const std::string& id) {
  std::lock_guard lock(mutex_);
  if (const auto found = sessions_.find(id); found != sessions_.end()) found->second->busy = false;
}

void Sessions::Attach(Sequence& sequence) {
  if (!sequence.request().session.has_value()) return;
  std::lock_guard lock(mutex_);
  const auto found = sessions_.find(sequence.request().session->id);
  if (found != sessions_.end()) sequence.lane = found->second->lane;
}

bool Sessions::Prepare(Sequence& sequence) {
  if (!sequence.request().session.has_value()) return true;
  std::lock_guard lock(mutex_);
  const auto found = sessions_.find(sequence.request().session->id);
  if (found == sessions_.end()) {  // on its way to host memory, which had no room
    sequence.lost = true;
    return false;
  }
  Session& session = *found->second;
  if (session.saving) return false;
  // The image is the sequence's from here on, so that its memory serves whoever gives a lane up.
  if (session.state.image != nullptr) {
    sequence.BeginWith(session.state.image);
    SetImage(session, nullptr);
  }
  return true;
}

bool Sessions::EndTurn(const Sequence& sequence, int lane) {
  if (!sequence.request().session.has_value()) return false;
  std::lock_guard lock(mutex_);
  const auto found = sessions_.find(sequence.request().session->id);
  if (found == sessions_.end()) return false;
  Session& session = *found->second;
  session.busy = false;
  session.used = absl::Now();
  SessionState& state = session.state;
  if (!sequence.progressed()) {
    if (state.tokens == 0) return false;
    // Unless the lane has been restored, the image that was to be is the state still.
    if (sequence.image != nullptr) SetImage(session, sequence.image);
    if (sequence.image == nullptr && lane >= 0) session.lane = lane;
    return session.lane >= 0 && session.lane == lane;
  }
  Standing standing = sequence.standing();
  SetImage(session, nullptr);
  if (standing.tokens > 0) state.prefix = 0;
  state.tokens = standing.tokens;
  state.pending = std::move(standing.pending);
  state.last_token = standing.last_token;
  ++state.turns;
  session.lane = standing.tokens > 0 ? lane : -1;
  return standing.tokens > 0;
}

LaneSave Sessions::SaveOf(const SessionPtr& session) {
  session->saving = true;
  return {.lane = session->lane,
          .tokens = session->state.tokens,
          .done = [this, session](absl::StatusOr<LaneImagePtr> image) {
            OnSaved(session, std::move(image));
          }};
}

void Sessions::AddSaves(int room, std::vector<LaneSave>* saves) {
  std::lock_guard lock(mutex_);
  for (const auto& [id, session] : sessions_) {
    if (static_cast<int>(saves->size()) >= room) return;
    if (session->waiters.empty() || session->saving) continue;
    saves->push_back(SaveOf(session));
  }
}

int Sessions::GiveUpLane(int room, std::vector<LaneSave>* saves) {
  std::lock_guard lock(mutex_);
  const SessionPtr oldest =
      LeastRecentlyUsed([](const Session& session) { return session.lane >= 0; });
  if (oldest == nullptr) return -1;
  if (oldest->state.image == nullptr) {
    if (static_cast<int>(saves->size()) >= room) return -1;
    saves->push_back(SaveOf(oldest));
  }
  return std::exchange(oldest->lane, -1);
}

void Sessions::OnSaved(const SessionPtr& session, absl::StatusOr<LaneImagePtr> image) {
  Calls calls;
  {
    std::lock_guard lock(mutex_);
    session->saving = false;
    if (session->gone) return;
    absl::StatusOr<SessionState> state = session->state;
    bool kept = false;
    if (!image.ok()) {
      state = image.status();
    } else {
      state->image = *image;
      kept = MakeRoom((*image)->bytes(), session.get(), &calls);
      if (kept) SetImage(*session, *image);
    }
    for (auto& waiter : session->waiters) {
      calls.push_back([waiter = std::move(waiter), state] { waiter(state); });
    }
    session->waiters.clear();
    if (!kept && session->lane < 0) {
      LOG(WARNING) << "session " << session->id << " is lost: "
                   << (image.ok() ? "busy sessions leave no room in --session-memory"
                                  : std::string(image.status().message()));
      Remove(session, absl::OkStatus(), &calls);
    }
  }
  for (const auto& call : calls) call();
}

std::vector<int> Sessions::TakeFreedLanes() {
  std::lock_guard lock(mutex_);
  return std::exchange(freed_lanes_, {});
}

void Sessions::End(const absl::Status& status) {
  Calls calls;
  {
    std::lock_guard lock(mutex_);
    if (ended_.ok()) ended_ = status;
    for (const auto& [id, session] : sessions_) {
      for (auto& waiter : session->waiters) {
        calls.push_back([waiter = std::move(waiter), status] { waiter(status); });
      }
      session->waiters.clear();
    }
  }
  for (const auto& call : calls) call();
}

}  // namespace keyline
