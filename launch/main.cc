// keyline: one binary, one subcommand for each thing it does. See README.md, or `keyline --help`.

#include <glog/logging.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "launch/commands/commands.h"
#include "launch/ranks.h"

namespace keyline {

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 0;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kOutOfRange:
      return 3;
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
      return 4;
    case absl::StatusCode::kAlreadyExists:
      return 76;
    default:
      return 1;
  }
}

namespace {

// The deployment file gives defaults, so it is read before the flags that override them.
std::string FindConfig(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg == "--config" && i + 1 < argc) return argv[i + 1];
    if (arg.rfind("--config=", 0) == 0) return std::string(arg.substr(9));
  }
  const char* environment = std::getenv("KEYLINE_CONFIG");
  return environment == nullptr ? "" : environment;
}

// Under mpirun every rank meets the same error; one of them says so.
void Complain(const absl::Status& status) {
  if (ProcessRank() != 0) return;
  std::fprintf(stderr, "keyline: %s: %s\n", absl::StatusCodeToString(status.code()).c_str(),
               std::string(status.message()).c_str());
}

std::string KnownFlags(const CLI::App& app) {
  std::string names;
  const CLI::App* used = &app;
  for (const CLI::App* sub : app.get_subcommands()) used = sub;
  for (const CLI::Option* option : used->get_options()) {
    if (option->get_lnames().empty()) continue;
    names += " --" + option->get_lnames()[0];
  }
  return names;
}

int Main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed connection is an error to handle, not a death
  FLAGS_logtostderr = true;
  google::InitGoogleLogging(argv[0]);

  LaunchOptions options;
  if (const std::string config = FindConfig(argc, argv); !config.empty()) {
    if (const absl::Status status = ApplyDeployment(config, options); !status.ok()) {
      Complain(status);
      return ExitCode(status);
    }
  }
  CLI::App app(
      "Serves language models with long contexts on few GPUs: fixed-size, selectively evicting KV "
      "caches, layers sharded over ranks.",
      "keyline");
  app.require_subcommand(1);
  app.set_version_flag("--version", KEYLINE_VERSION);
  Command chosen;
  AddGenerate(app, options, chosen);
  AddServe(app, options, chosen);
  AddClient(app, options, chosen);
  AddScore(app, options, chosen);
  AddEval(app, options, chosen);
  AddPlan(app, options, chosen);
  AddTokenize(app, options, chosen);
  AddBench(app, options, chosen);
  AddSelftest(app, options, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::CallForVersion& version) {
    return app.exit(version);
  } catch (const CLI::ParseError& error) {
    if (ProcessRank() == 0) {
      app.exit(error);
      if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
        std::fprintf(stderr, "Known flags:%s\n", KnownFlags(app).c_str());
      }
    }
    return 2;
  }
  const absl::Status status = chosen();
  if (!status.ok()) Complain(status);
  return ExitCode(status);
}

}  // namespace
}  // namespace keyline

int main(int argc, char** argv) { return keyline::Main(argc, argv); }
