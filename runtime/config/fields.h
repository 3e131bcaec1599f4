// Fields: typed and bounded look-ups in what a model says of itself, be it a JSON object or GGUF
// metadata. For the readers of configurations.
//
// Errors are INVALID_ARGUMENT: file, field, what it must be, what it is.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/files/gguf/gguf.h"

namespace keyline {

class Fields {
 public:
  virtual ~Fields() = default;

  // A field that is absent (or null) takes `fallback`; without one it is an error.
  absl::StatusOr<int64_t> Integer(const std::string& key, int64_t low, int64_t high,
                                  std::optional<int64_t> fallback = std::nullopt) const;
  absl::StatusOr<double> Real(const std::string& key, double low, double high,
                              std::optional<double> fallback = std::nullopt) const;
  absl::StatusOr<bool> Boolean(const std::string& key, bool fallback) const;
  absl::StatusOr<std::string> String(const std::string& key,
                                     std::optional<std::string> fallback = std::nullopt) const;
  virtual bool Has(const std::string& key) const = 0;

  // "FILE: KEY WHAT".
  absl::Status Invalid(const std::string& key, const std::string& what) const;
  absl::Status Unsupported(const std::string& key, const std::string& what) const;

 protected:
  explicit Fields(std::string path) : path_(std::move(path)) {}
  // REQUIRES: Has(key). Empty where the value has another type.
  virtual std::optional<int64_t> FindInteger(const std::string& key) const = 0;
  virtual std::optional<double> FindReal(const std::string& key) const = 0;
  virtual std::optional<bool> FindBoolean(const std::string& key) const = 0;
  virtual std::optional<std::string> FindString(const std::string& key) const = 0;
  // The value, for messages.
  virtual std::string Show(const std::string& key) const = 0;
  virtual std::string FullName(const std::string& key) const { return key; }

 private:
  std::string path_;
};

// Fields of one JSON object, which must outlive this.
class JsonFields : public Fields {
 public:
  // `prefix` goes before keys in messages: "rope_scaling.".
  JsonFields(std::string path, const nlohmann::json& object, std::string prefix = "");
  bool Has(const std::string& key) const override;
  // Null where absent, or null in the file.
  const nlohmann::json* Find(const std::string& key) const;
  // Whether the file says null, which is not always the same as saying nothing.
  bool IsNull(const std::string& key) const;
  // A token id or a list of them; empty where absent.
  absl::StatusOr<std::vector<int>> TokenIds(const std::string& key, int vocab_size) const;

 protected:
  std::optional<int64_t> FindInteger(const std::string& key) const override;
  std::optional<double> FindReal(const std::string& key) const override;
  std::optional<bool> FindBoolean(const std::string& key) const override;
  std::optional<std::string> FindString(const std::string& key) const override;
  std::string Show(const std::string& key) const override;
  std::string FullName(const std::string& key) const override { return prefix_ + key; }

 private:
  const nlohmann::json& object_;
  std::string prefix_;
};

// Metadata whose keys begin with `prefix` ("llama."), which callers leave out.
class GgufFields : public Fields {
 public:
  GgufFields(const GgufFile& file, std::string prefix);
  bool Has(const std::string& key) const override;

 protected:
  std::optional<int64_t> FindInteger(const std::string& key) const override;
  std::optional<double> FindReal(const std::string& key) const override;
  std::optional<bool> FindBoolean(const std::string& key) const override;
  std::optional<std::string> FindString(const std::string& key) const override;
  std::string Show(const std::string& key) const override;
  std::string FullName(const std::string& key) const override { return prefix_ + key; }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

}  // namespace keyline
