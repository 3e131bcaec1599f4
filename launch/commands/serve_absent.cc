// keyline serve in a build without gRPC.

#include "launch/commands/commands.h"

namespace keyline {

void AddServe(CLI::App& app, LaunchOptions& /*options*/, Command& chosen) {
  CLI::App& sub = AddCommand(app, "serve", "not in this build: it needs gRPC", chosen, [] {
    return absl::UnavailableError(
        "built without gRPC; install libgrpc++-dev and configure with -DWITH_RPC=ON");
  });
  AllowAnyFlags(sub);
}

}  // namespace keyline
