// The SDK as a stranger gets it: installed into an empty prefix, found by find_package, its example
// built, and run against a server.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "tests/rpc/served_queue.h"

namespace keyline {
namespace {

// Runs a command; its output is in `log` if it fails.
void Execute(const std::string& command, const std::string& log) {
  if (std::system((command + " >" + log + " 2>&1").c_str()) == 0) return;
  std::ostringstream text;
  text << std::ifstream(log).rdbuf();
  FAIL() << command << "\n" << text.str();
}

TEST(ClientPackage, ItsExampleBuildsAndStreams) {
  const std::string folder = ::testing::TempDir() + "/keyline_package_" + std::to_string(getpid());
  const std::string log = folder + "/log";
  std::filesystem::create_directories(folder);
  const std::string cmake = CMAKE_PROGRAM;
  const std::string flags =
      std::string(SANITIZE).empty() ? "" : " -DCMAKE_CXX_FLAGS=-fsanitize=" + std::string(SANITIZE);
  ASSERT_NO_FATAL_FAILURE(Execute(cmake + " --install " + BUILD_DIR +
                                      " --component keyline-client --prefix " + folder + "/prefix",
                                  log));
  ASSERT_NO_FATAL_FAILURE(Execute(
      cmake + " -S rpc/client/example -B " + folder +
          "/build -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH=" + folder + "/prefix" + flags,
      log));
  ASSERT_NO_FATAL_FAILURE(Execute(cmake + " --build " + folder + "/build", log));

  testing::ServedQueue served;
  ASSERT_NO_FATAL_FAILURE(
      Execute(folder + "/build/stream " + served.address() + " 'Once upon a time'", log));
  std::ostringstream text;
  text << std::ifstream(log).rdbuf();
  EXPECT_NE(text.str().find("abcdefghijklmnopqrstuvwxyz"), std::string::npos) << text.str();
  EXPECT_NE(text.str().find("64 tokens"), std::string::npos) << text.str();
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace keyline
