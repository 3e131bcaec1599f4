#include "launch/flags.h"

#include <CLI/CLI.hpp>
#include <cctype>
#include <cstdint>
#include <optional>
#include <utility>

namespace keyline {
namespace {

std::string EnvironmentName(const std::string& flag) {  // "--kv-policy" -> "KEYLINE_KV_POLICY"
  std::string name = "KEYLINE_";
  const std::string longest =
      flag.substr(flag.rfind("--") == std::string::npos ? 0 : flag.rfind("--") + 2);
  for (char c : longest) name += c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return name;
}

}  // namespace

Flag Flag::Within(int least, int most) const {
  return Flag(option_->check(CLI::Range(least, most)));
}
Flag Flag::Within(double least, double most) const {
  return Flag(option_->check(CLI::Range(least, most)));
}
Flag Flag::NonNegative() const { return Flag(option_->check(CLI::NonNegativeNumber)); }
Flag Flag::Positive() const { return Flag(option_->check(CLI::PositiveNumber)); }
Flag Flag::OneOf(const std::vector<std::string>& choices) const {
  return Flag(option_->check(CLI::IsMember(choices)));
}
Flag Flag::SeparatedByCommas() const { return Flag(option_->delimiter(',')); }
Flag Flag::Values(int least, int most) const { return Flag(option_->expected(least, most)); }
Flag Flag::Required() const { return Flag(option_->required()); }
Flag Flag::Excludes(Flag other) const { return Flag(option_->excludes(other.option_)); }
Flag Flag::ShowDefault() const { return Flag(option_->capture_default_str()); }

template <class T>
Flag AddOption(CLI::App& app, const std::string& name, T& value, const std::string& help) {
  return Flag(app.add_option(name, value, help)->envname(EnvironmentName(name)));
}

Flag AddFlag(CLI::App& app, const std::string& name, bool& value, const std::string& help) {
  return Flag(app.add_flag(name, value, help)->envname(EnvironmentName(name)));
}

Flag AddWord(CLI::App& app, const std::string& name, std::string& value, const std::string& help) {
  return Flag(app.add_option(name, value, help));
}

CLI::App& AddCommand(CLI::App& app, const std::string& name, const std::string& help,
                     Command& chosen, Command run) {
  CLI::App& command = *app.add_subcommand(name, help);
  command.callback([&chosen, run = std::move(run)] { chosen = run; });
  return command;
}

void AllowAnyFlags(CLI::App& command) { command.allow_extras(); }

// The types that flags have.
#define KEYLINE_FLAG_TYPE(T) \
  template Flag AddOption(CLI::App&, const std::string&, T&, const std::string&)
KEYLINE_FLAG_TYPE(std::string);
KEYLINE_FLAG_TYPE(int);
KEYLINE_FLAG_TYPE(int64_t);
KEYLINE_FLAG_TYPE(uint32_t);
KEYLINE_FLAG_TYPE(uint64_t);
KEYLINE_FLAG_TYPE(float);
KEYLINE_FLAG_TYPE(double);
KEYLINE_FLAG_TYPE(std::optional<int>);
KEYLINE_FLAG_TYPE(std::vector<int>);
KEYLINE_FLAG_TYPE(std::vector<uint32_t>);
KEYLINE_FLAG_TYPE(std::vector<double>);
KEYLINE_FLAG_TYPE(std::vector<std::string>);
#undef KEYLINE_FLAG_TYPE

}  // namespace keyline
