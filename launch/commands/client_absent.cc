// keyline client in a build without gRPC.

#include "launch/commands/commands.h"

namespace keyline {

void AddClient(CLI::App& app, LaunchOptions& /*options*/, Command& chosen) {
  CLI::App& sub = AddCommand(app, "client", "not in this build: it needs gRPC", chosen, [] {
    return absl::UnavailableError(
        "built without gRPC; install libgrpc++-dev and configure with -DWITH_RPC=ON");
  });
  AllowAnyFlags(sub);
}

}  // namespace keyline
