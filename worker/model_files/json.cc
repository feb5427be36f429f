#include "worker/model_files/json.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/base/text_file.h"

namespace ring {
namespace {

// Builds a Json from nlohmann's parser events. Unlike the library's own
// builder it stops at the depth limit and at a repeated key. Pointers into
// the tree stay valid because only the innermost open container grows.
class JsonBuilder : public nlohmann::json_sax<Json> {
 public:
  explicit JsonBuilder(absl::string_view what) : what_(what) {}

  // The parsed document; call once, after a successful parse.
  Json Take() { return std::move(root_); }
  // Why the parse stopped.
  const absl::Status& error() const { return error_; }

  bool null() override { return Add(nullptr) != nullptr; }
  bool boolean(bool value) override { return Add(value) != nullptr; }
  bool number_integer(number_integer_t value) override {
    return Add(value) != nullptr;
  }
  bool number_unsigned(number_unsigned_t value) override {
    return Add(value) != nullptr;
  }
  bool number_float(number_float_t value, const string_t&) override {
    return Add(value) != nullptr;
  }
  bool string(string_t& value) override {
    return Add(std::move(value)) != nullptr;
  }
  bool binary(binary_t&) override { return false; }

  bool start_object(std::size_t) override { return Open(Json::object()); }
  bool start_array(std::size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& name) override {
    Json& object = *open_.back();
    if (object.contains(name)) {
      error_ = absl::InvalidArgumentError(
          absl::StrCat(what_, ": the key \"", name, "\" occurs twice"));
      return false;
    }
    member_ = &object[name];
    return true;
  }

  bool parse_error(std::size_t position, const std::string& token,
                   const nlohmann::detail::exception& exception) override {
    error_ = absl::InvalidArgumentError(
        absl::StrCat(what_, ": not JSON at byte ", position, ", near \"", token,
                     "\": ", exception.what()));
    return false;
  }

 private:
  // Puts a value where the events stand: root, array end, or named member.
  template <typename Value>
  Json* Add(Value&& value) {
    if (open_.empty()) {
      root_ = Json(std::forward<Value>(value));
      return &root_;
    }
    if (open_.back()->is_array()) {
      open_.back()->push_back(Json(std::forward<Value>(value)));
      return &open_.back()->back();
    }
    *member_ = Json(std::forward<Value>(value));
    return member_;
  }

  bool Open(Json container) {
    if (open_.size() >= kMaxJsonDepth) {
      error_ = absl::InvalidArgumentError(absl::StrCat(
          what_, ": nested deeper than ", kMaxJsonDepth, " levels"));
      return false;
    }
    open_.push_back(Add(std::move(container)));
    return true;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  const absl::string_view what_;
  Json root_;
  std::vector<Json*> open_;  // containers not closed yet, outermost first
  Json* member_ = nullptr;   // where the value after a key goes
  absl::Status error_;
};

}  // namespace

absl::StatusOr<Json> ParseJson(absl::string_view text, absl::string_view what) {
  JsonBuilder builder(what);
  try {
    if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
      return builder.error();
    }
  } catch (const nlohmann::json::exception& exception) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": ", exception.what()));
  }
  return builder.Take();
}

absl::StatusOr<Json> ReadJsonFile(const std::string& path, int64_t max_bytes) {
  RING_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, max_bytes));
  return ParseJson(text, path);
}

}  // namespace ring
