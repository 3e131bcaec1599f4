// keyline client sessions: lists, makes, saves and removes conversations that a server keeps.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "launch/flags.h"
#include "rpc/client/client.h"

namespace keyline {

struct SessionArguments {
  bool create = false;
  std::string fork;  // session ids
  std::string save;
  std::string remove;
  std::string restore;  // names of saved sessions
  std::string remove_saved;
};

void AddSessionOptions(CLI::App& app, SessionArguments& arguments);

// Does what is asked for, and prints what came of it; without anything, lists.
absl::Status RunSessions(Client& client, const SessionArguments& arguments,
                         const CallOptions& call);

}  // namespace keyline
