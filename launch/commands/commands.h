// The subcommands of `keyline`. Each adds its flags to the application and, when chosen on the
// command line, leaves what is to be run in `chosen`.
#pragma once

#include "absl/status/status.h"
#include "launch/flags.h"
#include "launch/options.h"

namespace keyline {

// `options` holds the deployment file's values already; it must outlive the command.
void AddGenerate(CLI::App& app, LaunchOptions& options, Command& chosen);
void AddServe(CLI::App& app, LaunchOptions& options, Command& chosen);
void AddClient(CLI::App& app, LaunchOptions& options, Command& chosen);
void AddScore(CLI::App& app, LaunchOptions& options, Command& chosen);
void AddEval(CLI::App& app, LaunchOptions& options, Command& chosen);
void AddPlan(CLI::App& app, LaunchOptions& options, Command& chosen);
void AddTokenize(CLI::App& app, LaunchOptions& options, Command& chosen);
void AddBench(CLI::App& app, LaunchOptions& options, Command& chosen);
void AddSelftest(CLI::App& app, LaunchOptions& options, Command& chosen);

// 0; 3 bad input, 4 resources, 76 address in use, 1 our fault. Usage errors (2) never get this far.
int ExitCode(const absl::Status& status);

}  // namespace keyline
