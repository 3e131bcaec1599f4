#include "launch/commands/client_sessions.h"

#include <cstdio>

#include "kernels/device/status_macros.h"
#include "launch/placement_report.h"

namespace keyline {
namespace {

absl::Status List(Client& client, const CallOptions& call) {
  ASSIGN_OR_RETURN(const v1::ListSessionsResponse list, client.ListSessions(call));
  std::printf("%-32s  %8s  %6s  %s\n", "session", "tokens", "turns", "state");
  for (const v1::Session& session : list.sessions()) {
    std::string where = "empty";
    if (session.memory_bytes() > 0) {
      where = HumanBytes(static_cast<double>(session.memory_bytes())) + " in host memory";
    }
    if (session.on_lane()) where = "on its lane";
    if (session.busy()) where = "busy";
    std::printf("%-32s  %8u  %6llu  %s\n", session.id().c_str(), session.tokens(),
                static_cast<unsigned long long>(session.turns()), where.c_str());
  }
  for (const v1::SavedSession& saved : list.saved()) {
    std::printf("%-32s  saved, %s\n", saved.name().c_str(),
                HumanBytes(static_cast<double>(saved.bytes())).c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddSessionOptions(CLI::App& app, SessionArguments& a) {
  AddFlag(app, "--create", a.create, "sessions: a new one; prints its id");
  AddOption(app, "--fork", a.fork, "sessions: a new one where this one stands; prints its id");
  AddOption(app, "--save", a.save, "sessions: writes this one to a file; prints its name");
  AddOption(app, "--restore", a.restore, "sessions: a new one from a saved one; prints its id");
  AddOption(app, "--delete", a.remove, "sessions: removes this one");
  AddOption(app, "--delete-saved", a.remove_saved, "sessions: removes a saved one");
}

absl::Status RunSessions(Client& client, const SessionArguments& a, const CallOptions& call) {
  const int asked = (a.create ? 1 : 0) + (a.fork.empty() ? 0 : 1) + (a.save.empty() ? 0 : 1) +
                    (a.restore.empty() ? 0 : 1) + (a.remove.empty() ? 0 : 1) +
                    (a.remove_saved.empty() ? 0 : 1);
  if (asked == 0) return List(client, call);
  if (asked > 1) {
    return absl::InvalidArgumentError(
        "give one of --create, --fork, --save, --restore, --delete and --delete-saved");
  }
  std::string result;
  if (a.create) {
    ASSIGN_OR_RETURN(const auto made, client.CreateSession({}, call));
    result = made.session().id();
  } else if (!a.fork.empty()) {
    v1::ForkSessionRequest request;
    request.set_session_id(a.fork);
    ASSIGN_OR_RETURN(const auto made, client.ForkSession(request, call));
    result = made.session().id();
  } else if (!a.save.empty()) {
    v1::SaveSessionRequest request;
    request.set_session_id(a.save);
    ASSIGN_OR_RETURN(const auto made, client.SaveSession(request, call));
    result = made.saved().name();
  } else if (!a.restore.empty()) {
    v1::RestoreSessionRequest request;
    request.set_saved_name(a.restore);
    ASSIGN_OR_RETURN(const auto made, client.RestoreSession(request, call));
    result = made.session().id();
  } else {
    v1::DeleteSessionRequest request;
    if (!a.remove.empty()) request.set_session_id(a.remove);
    if (!a.remove_saved.empty()) request.set_saved_name(a.remove_saved);
    return client.DeleteSession(request, call).status();
  }
  std::printf("%s\n", result.c_str());
  return absl::OkStatus();
}

}  // namespace keyline
