// SessionStore: conversations that outlive a request, as those see them who serve clients. A
// session owns the state of one lane; a request that names it goes on where it stands, so only new
// tokens are computed. Thread: any. Implemented by Sessions (sessions.h); Engine::sessions gives
// it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/config/cache_config.h"

namespace keyline {

struct SessionOptions {
  std::optional<LanePolicy> cache;  // for its whole life; unset: the server's default
  // What every turn follows (a system prompt); may be empty. It is a prefix mark: sessions that
  // begin alike share its snapshot.
  std::vector<int32_t> prefix;
};

struct SessionInfo {
  std::string id;
  LanePolicy cache;
  bool busy = false;     // a request is at it
  bool on_lane = false;  // its state is on the device; else in host memory
  int tokens = 0;        // of the conversation so far, the model's answers included
  uint64_t turns = 0;    // requests that have continued it
  int32_t last_token = -1;
  int64_t memory_bytes = 0;  // in host memory
  absl::Time created;
  absl::Time used;
};

// A session in a file of --session-dir.
struct SavedSession {
  std::string name;
  int64_t bytes = 0;
  absl::Time saved;
};

class SessionStore {
 public:
  template <class T>
  using Done = std::function<void(absl::StatusOr<T>)>;

  virtual ~SessionStore() = default;
  // All: NOT_FOUND for a session that is unknown, deleted or has expired; FAILED_PRECONDITION where
  // a request is at it, or sessions are switched off.

  // INVALID_ARGUMENT for a policy or prefix that cannot be served; RESOURCE_EXHAUSTED where there
  // are max_sessions and all are busy. The least recently used idle session makes room.
  virtual absl::StatusOr<SessionInfo> Create(SessionOptions options) = 0;
  virtual absl::StatusOr<SessionInfo> Get(const std::string& id) const = 0;
  virtual std::vector<SessionInfo> List() const = 0;
  virtual absl::Status Delete(const std::string& id) = 0;
  // Another session that stands where this one stands. `done` may be called on another thread, and
  // must not wait.
  virtual void Fork(const std::string& id, Done<SessionInfo> done) = 0;

  // Files under names of the store's choosing. FAILED_PRECONDITION without --session-dir;
  // RESOURCE_EXHAUSTED where it holds max_sessions.
  virtual void Save(const std::string& id, Done<SavedSession> done) = 0;
  // A new session. INVALID_ARGUMENT for what is no name; NOT_FOUND; DATA_LOSS for a damaged file;
  // FAILED_PRECONDITION for one of another model, or of a cache that this server does not have.
  virtual absl::StatusOr<SessionInfo> Restore(const std::string& name) = 0;
  virtual absl::StatusOr<std::vector<SavedSession>> ListSaved() const = 0;
  virtual absl::Status DeleteSaved(const std::string& name) = 0;
};

}  // namespace keyline
