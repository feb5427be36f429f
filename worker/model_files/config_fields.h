// Takes the fields of a config file one by one: checks each, notes what became
// of it, and collects every problem instead of stopping at the first.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "worker/model_files/json.h"
#include "worker/model_files/model_config.h"

namespace ring {

// JSON text of a value for messages: valid UTF-8 and cut when very long.
std::string ValueText(const Json& value);

// Reads one JSON object. A null counts as absent, as in the Hugging Face
// readers. After a problem the getters return a value of no meaning; whether
// there was one stands in `errors`. All pointers outlive the reader.
class FieldReader {
 public:
  // `prefix` stands before every name in notes and errors: "",
  // "rope_scaling.".
  FieldReader(const Json& object, std::string prefix, ModelConfigFile* report,
              std::vector<std::string>* errors);

  // Null when absent. Marks the field as known.
  const Json* Find(const std::string& name);
  bool Has(const std::string& name) const;

  // A number or a switch. Without a fallback the field is required. The
  // limits belong to the range.
  int64_t Int(const std::string& name, int64_t low, int64_t high,
              std::optional<int64_t> fallback = std::nullopt);
  double Number(const std::string& name, double low, double high,
                std::optional<double> fallback = std::nullopt);
  bool Bool(const std::string& name,
            std::optional<bool> fallback = std::nullopt);

  // A setting of which one value is implemented. Absent means that value.
  void Only(const std::string& name, const Json& supported);
  // Known, without meaning at inference.
  void Ignore(const std::string& name);
  // Every field that was not asked for: a warning, or an error where unknown
  // ones may change the arithmetic. Call last.
  void WarnAboutRest();
  void RefuseRest();

  void Note(const std::string& name, std::string value, ConfigField::Use use);
  void Refuse(const std::string& name, const Json& value,
              const std::string& supported);
  void Missing(const std::string& name);

 private:
  template <typename T>
  std::optional<T> Absent(const std::string& name, std::optional<T> fallback);
  std::vector<std::string> RestNames() const;

  const Json& object_;
  const std::string prefix_;
  ModelConfigFile* const report_;
  std::vector<std::string>* const errors_;
  std::vector<std::string> known_;
};

}  // namespace ring
