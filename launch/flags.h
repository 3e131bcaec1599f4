// How subcommands declare their flags. CLI11 takes longer to compile than all else that a command
// includes, so flags.cc alone (and main.cc, which parses) sees it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace keyline {

// A declared flag, to say more about: what breaks it is a usage error naming flag and limit.
class Flag {
 public:
  explicit Flag(CLI::Option* option) : option_(option) {}

  Flag Within(int least, int most) const;
  Flag Within(double least, double most) const;
  Flag NonNegative() const;
  Flag Positive() const;
  Flag OneOf(const std::vector<std::string>& choices) const;
  Flag SeparatedByCommas() const;
  Flag Values(int least, int most) const;  // how many it takes
  Flag Required() const;
  Flag Excludes(Flag other) const;
  Flag ShowDefault() const;  // in --help: the value that it has now

 private:
  CLI::Option* option_;
};

// An option with its environment variable (--kv-policy: KEYLINE_KV_POLICY), and the same for a
// flag. T: see the end of flags.cc. `value` must outlive the parsing.
template <class T>
Flag AddOption(CLI::App& app, const std::string& name, T& value, const std::string& help);
Flag AddFlag(CLI::App& app, const std::string& name, bool& value, const std::string& help);
// A word without dashes, which has no environment variable.
Flag AddWord(CLI::App& app, const std::string& name, std::string& value, const std::string& help);

// What a command line asks for.
using Command = std::function<absl::Status()>;

// A subcommand, which leaves `run` in `chosen` when the command line names it.
CLI::App& AddCommand(CLI::App& app, const std::string& name, const std::string& help,
                     Command& chosen, Command run);
// It takes any flags: it is going to say why it does not run.
void AllowAnyFlags(CLI::App& command);

}  // namespace keyline
