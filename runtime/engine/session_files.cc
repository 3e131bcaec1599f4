#include "runtime/engine/session_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>
#include <span>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/engine/saved_session.pb.h"
#include "runtime/files/input_file.h"
#include "runtime/files/quoted.h"
#include "runtime/pipeline/open_lane.h"
#include "runtime/transport/crc32c.h"

namespace keyline {
namespace {

constexpr char kMagic[8] = {'K', 'V', 'S', 'E', 'S', 'S', 'I', 'N'};
constexpr uint32_t kVersion = 1;
constexpr char kSuffix[] = ".kvsession";
constexpr char kUnfinished[] = ".part";
constexpr size_t kNameDigits = 32;

// Little-endian, as everything in the file.
struct FileHeader {
  char magic[8];
  uint32_t version;
  uint32_t crc;  // of version, payload_bytes and the payload
  uint64_t payload_bytes;
};
static_assert(sizeof(FileHeader) == 24);

uint32_t CrcOf(const FileHeader& header, std::string_view payload) {
  const auto bytes_of = [](const auto& value) { return std::as_bytes(std::span(&value, 1)); };
  const uint32_t crc = Crc32c(bytes_of(header.payload_bytes), Crc32c(bytes_of(header.version)));
  return Crc32c(std::as_bytes(std::span(payload.data(), payload.size())), crc);
}

absl::Status Damaged(const std::string& what) {
  return absl::DataLossError(absl::StrCat("saved session: ", what));
}

absl::Status SystemError(const std::string& what) {
  const std::error_code code(errno, std::generic_category());
  return errno == ENOSPC || errno == EDQUOT
             ? absl::ResourceExhaustedError(absl::StrCat(what, ": ", code.message()))
             : absl::InternalError(absl::StrCat(what, ": ", code.message()));
}

absl::Status WriteAll(int file, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = write(file, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return SystemError(absl::StrCat("write ", path));
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return fsync(file) == 0 ? absl::OkStatus() : SystemError(absl::StrCat("fsync ", path));
}

bool IsName(std::string_view name) {
  return name.size() == kNameDigits && std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

}  // namespace

std::string RandomName() {
  std::random_device random;
  std::string name;
  for (size_t i = 0; i < kNameDigits / 8; ++i) {
    absl::StrAppend(&name, absl::Hex(static_cast<uint32_t>(random()), absl::kZeroPad8));
  }
  return name;
}

std::string EncodeSession(const SessionState& state, const std::string& model) {
  SavedSessionState saved;
  saved.set_model(model);
  WritePolicy(state.cache, *saved.mutable_cache());
  saved.set_chunk_size(state.cache.chunk_size.value_or(0));
  saved.set_max_chunk(state.cache.max_chunk);
  saved.set_tokens(state.tokens);
  saved.mutable_pending()->Assign(state.pending.begin(), state.pending.end());
  saved.set_prefix(state.prefix);
  saved.set_turns(state.turns);
  saved.set_last_token(state.last_token);
  if (state.image != nullptr) {
    saved.mutable_layers()->Assign(state.image->layers.begin(), state.image->layers.end());
  }
  std::string payload = saved.SerializeAsString();
  FileHeader header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.payload_bytes = payload.size();
  header.crc = CrcOf(header, payload);
  return payload.insert(0, reinterpret_cast<const char*>(&header), sizeof(header));
}

absl::StatusOr<SessionState> DecodeSession(std::string_view bytes, const std::string& model) {
  FileHeader header;
  if (bytes.size() < sizeof(header)) {
    return Damaged(absl::StrCat(bytes.size(), " bytes are less than its header"));
  }
  std::memcpy(&header, bytes.data(), sizeof(header));
  bytes.remove_prefix(sizeof(header));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) return Damaged("not such a file");
  if (header.version != kVersion) {
    return absl::FailedPreconditionError(absl::StrCat("saved session: of version ", header.version,
                                                      ", this server reads ", kVersion));
  }
  if (header.payload_bytes != bytes.size()) {
    return Damaged(absl::StrCat("has ", bytes.size(), " bytes behind its header, which says ",
                                header.payload_bytes));
  }
  if (header.crc != CrcOf(header, bytes)) return Damaged("its checksum does not match");
  SavedSessionState saved;
  if (bytes.size() > static_cast<size_t>(std::numeric_limits<int>::max()) ||
      !saved.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return Damaged("cannot be parsed");
  }
  if (saved.model() != model) {
    return absl::FailedPreconditionError(absl::StrCat(
        "saved session: of the model ", Quoted(saved.model()), ", here is '", model, "'"));
  }
  SessionState state;
  state.cache = ReadPolicy(saved.cache());
  state.cache.chunk_size = saved.chunk_size();
  state.cache.max_chunk = saved.max_chunk();
  state.tokens = saved.tokens();
  state.pending.assign(saved.pending().begin(), saved.pending().end());
  state.prefix = saved.prefix();
  state.turns = saved.turns();
  state.last_token = saved.last_token();
  if (saved.layers_size() > 0) {
    auto image = std::make_shared<LaneImage>();
    image->tokens = saved.tokens();
    for (std::string& layer : *saved.mutable_layers()) image->layers.push_back(std::move(layer));
    state.image = std::move(image);
  }
  return state;
}

absl::Status SessionDir::Check(const std::string& path) {
  if (path.empty()) return absl::OkStatus();
  struct stat info {};
  if (stat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("--session-dir: '", path, "' is no folder"));
  }
  if (access(path.c_str(), R_OK | W_OK | X_OK) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--session-dir: '", path, "' cannot be read and written"));
  }
  return absl::OkStatus();
}

absl::Status SessionDir::Usable() const {
  if (!path_.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "this server saves no sessions: it was started without --session-dir");
}

absl::StatusOr<std::string> SessionDir::FileOf(const std::string& name) const {
  RETURN_IF_ERROR(Usable());
  if (!IsName(name)) {
    return absl::InvalidArgumentError(absl::StrCat("saved session ", Quoted(name),
                                                   ": must be a name that SaveSession gave, of ",
                                                   kNameDigits, " hexadecimal digits"));
  }
  return absl::StrCat(path_, "/", name, kSuffix);
}

absl::StatusOr<SavedSession> SessionDir::Write(std::string_view bytes) const {
  ASSIGN_OR_RETURN(const std::vector<SavedSession> there, List());
  if (static_cast<int>(there.size()) >= max_files_) {
    return absl::ResourceExhaustedError(absl::StrCat("there are ", there.size(),
                                                     " saved sessions (limit --max-sessions ",
                                                     max_files_, "); delete one first"));
  }
  SavedSession saved{
      .name = RandomName(), .bytes = static_cast<int64_t>(bytes.size()), .saved = absl::Now()};
  ASSIGN_OR_RETURN(const std::string path, FileOf(saved.name));
  const std::string part = path + kUnfinished;
  const int file = open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) return SystemError(absl::StrCat("create ", part));
  absl::Status status = WriteAll(file, bytes, part);
  struct stat info {};
  if (fstat(file, &info) == 0) saved.saved = absl::TimeFromTimespec(info.st_mtim);  // as List
  close(file);
  if (status.ok() && rename(part.c_str(), path.c_str()) != 0) {
    status = SystemError(absl::StrCat("rename ", part));
  }
  if (!status.ok()) {
    unlink(part.c_str());
    return status;
  }
  return saved;
}

absl::StatusOr<std::string> SessionDir::Read(const std::string& name) const {
  ASSIGN_OR_RETURN(const std::string path, FileOf(name));
  absl::StatusOr<InputFile> file = InputFile::Open(path);
  if (absl::IsNotFound(file.status())) {
    return absl::NotFoundError(absl::StrCat("there is no saved session '", name, "'"));
  }
  RETURN_IF_ERROR(file.status());
  if (file->size() > static_cast<uint64_t>(max_file_bytes_)) {
    return absl::FailedPreconditionError(absl::StrCat("saved session: ", file->size(),
                                                      " bytes, of which --session-memory allows ",
                                                      max_file_bytes_));
  }
  std::string bytes(file->size(), '\0');
  RETURN_IF_ERROR(file->Read(0, std::as_writable_bytes(std::span(bytes.data(), bytes.size()))));
  return bytes;
}

absl::StatusOr<std::vector<SavedSession>> SessionDir::List() const {
  RETURN_IF_ERROR(Usable());
  std::vector<SavedSession> found;
  std::error_code error;
  for (std::filesystem::directory_iterator at(path_, error), end; !error && at != end;
       at.increment(error)) {
    const std::string file = at->path().filename().string();
    if (!absl::EndsWith(file, kSuffix)) continue;
    const std::string name = file.substr(0, file.size() - std::strlen(kSuffix));
    struct stat info {};
    if (!IsName(name) || lstat(at->path().c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
    found.push_back({.name = name,
                     .bytes = static_cast<int64_t>(info.st_size),
                     .saved = absl::TimeFromTimespec(info.st_mtim)});
  }
  if (error) {
    return absl::InternalError(absl::StrCat("--session-dir ", path_, ": ", error.message()));
  }
  std::sort(found.begin(), found.end(), [](const SavedSession& a, const SavedSession& b) {
    return std::pair(a.saved, a.name) < std::pair(b.saved, b.name);
  });
  return found;
}

absl::Status SessionDir::Delete(const std::string& name) const {
  ASSIGN_OR_RETURN(const std::string path, FileOf(name));
  if (unlink(path.c_str()) == 0) return absl::OkStatus();
  if (errno == ENOENT) {
    return absl::NotFoundError(absl::StrCat("there is no saved session '", name, "'"));
  }
  return SystemError(absl::StrCat("delete ", path));
}

DiskThread::~DiskThread() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void DiskThread::Run(std::function<void()> work) {
  {
    std::lock_guard lock(mutex_);
    work_.push_back(std::move(work));
  }
  wake_.notify_all();
}

void DiskThread::Loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stop_ || !work_.empty(); });
    if (work_.empty()) return;
    const std::function<void()> work = std::move(work_.front());
    work_.pop_front();
    lock.unlock();
    work();
    lock.lock();
  }
}

}  // namespace keyline
