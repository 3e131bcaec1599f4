// What the files in tests/golden/text say: texts and the ids that other libraries give them.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "runtime/files/json_file.h"

namespace keyline {

inline nlohmann::json ReadGolden(const std::string& name) {
  auto json = ReadJsonFile("tests/golden/text/" + name, kTokenizerJson);
  EXPECT_TRUE(json.ok()) << json.status();
  return json.ok() ? *std::move(json) : nlohmann::json::object();
}

struct GoldenCase {
  std::string text;
  std::vector<int32_t> ids;                         // special tokens not parsed
  std::optional<std::vector<int32_t>> special_ids;  // parsed
  std::optional<std::string> decoded;               // of ids
};

inline std::vector<GoldenCase> ReadGoldenCases(const std::string& folder) {
  std::vector<GoldenCase> cases;
  const nlohmann::json golden = ReadGolden(folder + "/expected.json");
  for (const auto& entry : golden.at("cases")) {
    GoldenCase& made = cases.emplace_back();
    made.text = entry.at("text");
    made.ids = entry.at("ids").get<std::vector<int32_t>>();
    if (entry.contains("special_ids")) {
      made.special_ids = entry.at("special_ids").get<std::vector<int32_t>>();
    }
    if (entry.contains("decoded")) made.decoded = entry.at("decoded").get<std::string>();
  }
  return cases;
}

}  // namespace keyline
