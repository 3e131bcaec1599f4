// Sessions as files: written whole under random names, checked whole before anything of them is
// believed. Nothing says how many ranks there were. Thread: any; calls wait for the disk.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/config/cache_config.h"
#include "runtime/engine/lane_keeper.h"
#include "runtime/engine/session_store.h"

namespace keyline {

// A session without its name and its lane.
struct SessionState {
  LanePolicy cache;
  int tokens = 0;                // processed
  std::vector<int32_t> pending;  // to be processed first
  int prefix = 0;                // of those, the shared prefix; 0 once it is processed
  uint64_t turns = 0;
  int32_t last_token = -1;
  LaneImagePtr image;  // null where nothing is processed
};

// A file's bytes: magic, version, length, CRC-32C, and a SavedSessionState of `model`.
std::string EncodeSession(const SessionState& state, const std::string& model);
// DATA_LOSS: no such file, cut or damaged; FAILED_PRECONDITION: of another version or model.
// Whether the state makes sense for a server's caches is not looked at.
absl::StatusOr<SessionState> DecodeSession(std::string_view bytes, const std::string& model);

// 32 random hexadecimal digits: names of files, and of sessions.
std::string RandomName();

class SessionDir {
 public:
  // `path` "": none, and every call says so.
  SessionDir(std::string path, int max_files, int64_t max_file_bytes)
      : path_(std::move(path)), max_files_(max_files), max_file_bytes_(max_file_bytes) {}

  // Whether the folder is there and can be written; OK where none is configured.
  static absl::Status Check(const std::string& path);

  absl::Status Usable() const;
  absl::StatusOr<SavedSession> Write(std::string_view bytes) const;
  absl::StatusOr<std::string> Read(const std::string& name) const;
  absl::StatusOr<std::vector<SavedSession>> List() const;
  absl::Status Delete(const std::string& name) const;

 private:
  absl::StatusOr<std::string> FileOf(const std::string& name) const;

  const std::string path_;
  const int max_files_;
  const int64_t max_file_bytes_;
};

// Runs what must wait for the disk, one after the other, off the engine's thread.
class DiskThread {
 public:
  DiskThread() : thread_([this] { Loop(); }) {}
  ~DiskThread();  // finishes what was given to it
  void Run(std::function<void()> work);

 private:
  void Loop();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> work_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace keyline
