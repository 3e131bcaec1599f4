// Sessions: the SessionStore of an engine. Between its turns a session keeps its lane as long as
// nobody else needs it; then its state moves to host memory, and back when it goes on. What is
// asked for from any thread is answered under one mutex; what needs the device happens in the
// engine's next steps.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/engine/lane_keeper.h"
#include "runtime/engine/request.h"
#include "runtime/engine/sequence.h"
#include "runtime/engine/session_files.h"
#include "runtime/engine/session_store.h"
#include "runtime/pipeline/pipeline_spec.h"

namespace keyline {

class Tokenizer;

// States larger than this do not travel in one message between ranks: such lanes cannot be kept.
constexpr int64_t kMaxLaneStateBytes = int64_t{1} << 30;

struct SessionLimits {
  int max_sessions = 256;                // and files; 0: no sessions
  int64_t max_bytes = int64_t{1} << 30;  // of states in host memory
  std::string dir;                       // of saved ones; "": none
  std::string model;                     // ModelFingerprint
};

class Sessions final : public SessionStore {
 public:
  // `wake` makes the engine look for work; any thread, must not call back. `lane_bytes`: of one
  // lane, over all layers. `tokenizer` may be null. `spec`, `model` and it must outlive the
  // sessions.
  Sessions(SessionLimits limits, const PipelineSpec& spec, const ModelConfig& model,
           const Tokenizer* tokenizer, int64_t lane_bytes, std::function<void()> wake);
  ~Sessions() override;

  absl::StatusOr<SessionInfo> Create(SessionOptions options) override;
  absl::StatusOr<SessionInfo> Get(const std::string& id) const override;
  std::vector<SessionInfo> List() const override;
  absl::Status Delete(const std::string& id) override;
  void Fork(const std::string& id, Done<SessionInfo> done) override;
  void Save(const std::string& id, Done<SavedSession> done) override;
  absl::StatusOr<SessionInfo> Restore(const std::string& name) override;
  absl::StatusOr<std::vector<SavedSession>> ListSaved() const override;
  absl::Status DeleteSaved(const std::string& name) override;

  // ---- A session's turn ----
  // Fills in what the session knows of `request`, which names it; the session is busy from now on.
  // Any thread.
  absl::Status Claim(Request& request);
  // The claimed request was not accepted after all. Any thread.
  void Unclaim(const std::string& id);
  // The claimed request is queued: it gets the session's lane, if that has one.
  void Attach(Sequence& sequence);
  // A queued one without a lane. False: its state is on its way.
  bool Prepare(Sequence& sequence);
  // The turn is over, whatever its end; `lane` (or -1) was its lane. True: it is the session's now.
  bool EndTurn(const Sequence& sequence, int lane);

  // ---- The engine's thread, as LaneKeeper ----
  void AddSaves(int room, std::vector<LaneSave>* saves);
  int GiveUpLane(int room, std::vector<LaneSave>* saves);
  // Lanes of sessions that were deleted or expired.
  std::vector<int> TakeFreedLanes();
  // No steps come any more: whoever waits for a state hears `status`, and so do later calls.
  void End(const absl::Status& status);

 private:
  struct Session {
    std::string id;
    SessionState state;  // its image is null while a lane knows better
    absl::Time created;
    absl::Time used;
    int lane = -1;        // while it holds one
    bool busy = false;    // a turn is queued or runs
    bool saving = false;  // a step brings its state
    bool gone = false;    // deleted, expired, or lost
    // Who waits for state.image.
    std::vector<std::function<void(const absl::StatusOr<SessionState>&)>> waiters;
  };
  using SessionPtr = std::shared_ptr<Session>;
  using Calls = std::vector<std::function<void()>>;  // to be made without the mutex

  absl::Status CheckState(const SessionState& state) const;
  absl::StatusOr<SessionPtr> Find(const std::string& id) const;
  absl::StatusOr<SessionPtr> FindIdle(const std::string& id) const;
  absl::StatusOr<SessionInfo> Add(SessionState state, Calls* calls);
  // Calls `then` once the session's state is in host memory.
  void WithImage(const std::string& id,
                 std::function<void(const absl::StatusOr<SessionState>&)> then);
  LaneSave SaveOf(const SessionPtr& session);
  void OnSaved(const SessionPtr& session, absl::StatusOr<LaneImagePtr> image);
  void SetImage(Session& session, LaneImagePtr image);
  bool MakeRoom(int64_t bytes, const Session* but, Calls* calls);
  void Remove(const SessionPtr& session, const absl::Status& why, Calls* calls);
  SessionPtr LeastRecentlyUsed(const std::function<bool(const Session&)>& wanted) const;
  static SessionInfo InfoOf(const Session& session);

  const SessionLimits limits_;
  const PipelineSpec& spec_;
  const ModelConfig& model_;
  const Tokenizer* const tokenizer_;
  const int64_t lane_bytes_;
  const std::function<void()> wake_;
  const SessionDir dir_;

  mutable std::mutex mutex_;
  std::map<std::string, SessionPtr> sessions_;
  int64_t bytes_ = 0;  // of all images
  std::vector<int> freed_lanes_;
  absl::Status ended_;
  DiskThread disk_;  // last: ends first
};

}  // namespace keyline
