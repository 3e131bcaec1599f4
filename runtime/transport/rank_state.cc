#include "runtime/transport/rank_state.h"

#include <fcntl.h>
#include <glog/logging.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace keyline {
namespace {

// The line: "rank RRRRRR pid PPPPPPPPPP step SSSSSSSSSSSS layer LLLLLL OPERATION...\n".
constexpr std::string_view kEmptyLine =
    "rank        pid            step              layer        ";
constexpr size_t kRankAt = 5, kRankWidth = 6;
constexpr size_t kPidAt = 16, kPidWidth = 10;
constexpr size_t kStepAt = 32, kStepWidth = 12;
constexpr size_t kLayerAt = 51, kLayerWidth = 6;
constexpr size_t kOperationAt = 58;
constexpr size_t kOperationWidth = 64;

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Others may read at any time.
void Store(char& at, char c) { std::atomic_ref<char>(at).store(c, std::memory_order_relaxed); }

// "rank 1 pid 4242 step 7 layer 3 receive ...", whatever the file holds.
std::string Squeeze(std::string line) {
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c < ' ' || c > '~'; }, ' ');
  return absl::StrJoin(absl::StrSplit(line, ' ', absl::SkipEmpty()), " ");
}

bool IsGone(int64_t pid) { return kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH; }

// What jobs left beside `directory` ("...UID.PID") whose mpirun has ended.
void RemoveEndedJobs(const std::filesystem::path& directory) {
  const std::string own = directory.filename().string();
  const std::string prefix = own.substr(0, own.rfind('.') + 1);
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory.parent_path(), error)) {
    const std::string name = entry.path().filename().string();
    int64_t pid = 0;
    if (absl::StartsWith(name, prefix) && absl::SimpleAtoi(name.substr(prefix.size()), &pid) &&
        pid > 1 && IsGone(pid)) {
      std::filesystem::remove_all(entry.path(), error);
    }
  }
}

}  // namespace

static_assert(kEmptyLine.size() == kOperationAt);

RankState::RankState(int rank, const std::string& directory) : rank_(rank) {
  static_assert(kOperationAt + kOperationWidth < kBytes);
  if (!directory.empty()) {
    path_ = absl::StrCat(directory, "/rank.", rank);
    unlink(path_.c_str());  // of a job before
    const int file = open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    void* mapped = MAP_FAILED;
    if (file >= 0 && ftruncate(file, kBytes) == 0) {
      mapped = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    }
    if (file >= 0) close(file);
    if (mapped != MAP_FAILED) {
      line_ = static_cast<Line*>(mapped);
      directory_ = directory;
    } else {
      LOG(WARNING) << "rank " << rank << ": " << path_ << ": " << std::strerror(errno)
                   << "; should this rank be lost, nobody can read where it was";
    }
  }
  std::fill(line_->begin(), line_->end(), ' ');
  line_->back() = '\n';
  std::copy(kEmptyLine.begin(), kEmptyLine.end(), line_->begin());
  Put(kRankAt, kRankWidth, rank);
  Put(kPidAt, kPidWidth, getpid());
  Step(0);
  Doing("start");
}

RankState::~RankState() {
  if (directory_.empty()) return;
  munmap(line_, kBytes);
  unlink(path_.c_str());
  rmdir(directory_.c_str());  // the last one out
}

void RankState::Put(size_t at, size_t width, uint64_t number) {
  for (size_t i = width; i-- > 0; number /= 10) {
    const bool blank = number == 0 && i + 1 < width;
    Store((*line_)[at + i], blank ? ' ' : static_cast<char>('0' + number % 10));
  }
}

void RankState::Step(uint64_t step) {
  Put(kStepAt, kStepWidth, step);
  for (size_t i = 0; i < kLayerWidth; ++i) Store((*line_)[kLayerAt + i], i ? ' ' : '-');
}

void RankState::Layer(int layer) { Put(kLayerAt, kLayerWidth, layer); }

void RankState::Doing(std::string_view operation) {
  for (size_t i = 0; i < kOperationWidth; ++i) {
    Store((*line_)[kOperationAt + i], i < operation.size() ? operation[i] : ' ');
  }
}

void RankState::Expect(absl::Duration limit) {
  limit_ns_.store(absl::ToInt64Nanoseconds(limit), std::memory_order_relaxed);
  deadline_ns_.store(NowNs() + absl::ToInt64Nanoseconds(limit), std::memory_order_release);
}

void RankState::Ended() { deadline_ns_.store(0, std::memory_order_release); }

std::string RankState::text() const {
  std::string line(kBytes, ' ');
  for (size_t i = 0; i < kBytes; ++i) {
    line[i] = std::atomic_ref<char>((*line_)[i]).load(std::memory_order_relaxed);
  }
  return Squeeze(std::move(line));
}

bool RankState::overdue(absl::Duration* limit) const {
  const int64_t deadline = deadline_ns_.load(std::memory_order_acquire);
  *limit = absl::Nanoseconds(limit_ns_.load(std::memory_order_relaxed));
  return deadline != 0 && NowNs() > deadline;
}

std::string RankState::JobDirectory() {
  std::filesystem::path directory;
  bool shared_place = false;
  if (const char* given = std::getenv("KEYLINE_RANK_STATES"); given != nullptr && *given != 0) {
    directory = given;
  } else {
    const char* temporary = std::getenv("TMPDIR");
    directory = temporary != nullptr ? temporary : "/tmp";
    directory /= absl::StrCat("keyline-ranks-", getuid(), ".", getppid());
    shared_place = true;
  }
  const bool made = mkdir(directory.c_str(), 0700) == 0;
  if (!made && errno != EEXIST) return "";
  struct stat info;
  const bool ours = lstat(directory.c_str(), &info) == 0 && S_ISDIR(info.st_mode) &&
                    info.st_uid == getuid() && (info.st_mode & 022) == 0;
  if (!ours) return "";
  if (made && shared_place) RemoveEndedJobs(directory);
  return directory;
}

std::vector<std::string> RankState::GoneRanks(const std::string& directory) {
  std::vector<std::string> gone;
  if (directory.empty()) return gone;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    std::string line(kBytes, ' ');
    std::ifstream file(entry.path());
    if (!file.read(line.data(), kBytes)) continue;
    line = Squeeze(std::move(line));
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    int64_t pid = 0;
    if (words.size() < 4 || words[2] != "pid" || !absl::SimpleAtoi(words[3], &pid) || pid <= 1) {
      continue;
    }
    if (IsGone(pid)) gone.push_back(std::move(line));
  }
  std::sort(gone.begin(), gone.end());
  return gone;
}

void EndLostRank(const RankState& state, std::string_view why) {
  std::string text = absl::StrCat("keyline: ", state.text(), ": ",
                                  absl::string_view(why.data(), why.size()), "\n");
  for (const std::string& line : RankState::GoneRanks(RankState::JobDirectory())) {
    absl::StrAppend(&text, "keyline: gone: ", line, "\n");
  }
  // One write: ranks share the stream.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
  std::fflush(stdout);
  _exit(kLostRank);
}

}  // namespace keyline
