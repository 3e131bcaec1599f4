// RankState: where a rank is: step, layer, operation. One line of text, in a small mapped file
// where ranks are processes, so that whoever is left (another rank, the launch script, a person
// with cat) can read where a rank was that was killed or hangs.
//
// Written by the rank's own thread; text() and overdue() may be called from any. A change costs
// some 50 ns. A file that is left behind belongs to a rank that did not end in order.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"

namespace keyline {

class RankState {
 public:
  // A line in memory, or the file `directory`/rank.N, which the destructor removes. Where there can
  // be no such file (logged) it is memory too: the rank is not to fail for it.
  explicit RankState(int rank, const std::string& directory = "");
  ~RankState();
  RankState(const RankState&) = delete;
  RankState& operator=(const RankState&) = delete;

  void Step(uint64_t step);
  void Layer(int layer);
  // What it does or waits for, as in "receive a f32 tensor [4, 1024] from rank 0"; cut to 64 bytes.
  void Doing(std::string_view operation);
  // Expect: the step should end within `limit`, else the watchdog ends the process. Ended: nothing
  // is owed any more.
  void Expect(absl::Duration limit);
  void Ended();

  int rank() const { return rank_; }
  // "rank 1 pid 4242 step 7 layer 3: receive ..."
  std::string text() const;
  // Whether what was expected has not happened; `limit` says within what time.
  bool overdue(absl::Duration* limit) const;

  // The folder of this process's job: $KEYLINE_RANK_STATES, else one in $TMPDIR for the ranks that
  // have one parent (mpirun) on this host. Empty where it cannot be made, or is not ours alone.
  static std::string JobDirectory();
  // One line for each rank of the folder whose process is gone without having removed its file.
  static std::vector<std::string> GoneRanks(const std::string& directory);

 private:
  static constexpr size_t kBytes = 128;
  using Line = std::array<char, kBytes>;
  void Put(size_t at, size_t width, uint64_t number);

  const int rank_;
  std::string directory_;  // empty: no file
  std::string path_;
  Line memory_{};
  Line* line_ = &memory_;
  std::atomic<int64_t> deadline_ns_{0};  // 0: nothing is expected
  std::atomic<int64_t> limit_ns_{0};
};

// The exit code of a process whose peer or device was lost: the job may be started again.
constexpr int kLostRank = 75;

// Says on standard error where this rank is, why it ends and which ranks of its host are gone; then
// ends the process at once, without waiting for any peer, device or thread.
[[noreturn]] void EndLostRank(const RankState& state, std::string_view why);

}  // namespace keyline
