#include "coordinator/text/tokenizer_file.h"

#include <algorithm>
#include <initializer_list>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "worker/model_files/json.h"

namespace ring {
namespace {

constexpr absl::string_view kFile = "tokenizer.json";

// What ByteLevel splits by itself when use_regex is on (the GPT-2 pattern).
constexpr char kByteLevelPattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)"
    R"(|\s+(?!\S)|\s+)";

// One JSON object of the file together with its place, for messages.
class Section {
 public:
  // INVALID_ARGUMENT if `json` is no object or has a key not in `known`.
  static absl::StatusOr<Section> Open(
      const Json& json, std::string place,
      std::initializer_list<absl::string_view> known) {
    if (!json.is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat(kFile, ": ", place, " is not an object"));
    }
    for (const auto& [key, value] : json.items()) {
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        return absl::InvalidArgumentError(absl::StrCat(
            kFile, ": the field ", place, ".", key, " is not known"));
      }
    }
    return Section(json, std::move(place));
  }

  // The value, or null if it is absent.
  const Json& Get(const char* key) const {
    static const Json kNull;
    const auto found = json_.find(key);
    return found == json_.end() ? kNull : *found;
  }

  absl::StatusOr<std::string> String(const char* key) const {
    const Json& value = Get(key);
    if (!value.is_string()) return WrongType(key, "a string");
    return value.get<std::string>();
  }

  // `fallback` where the key is absent; no fallback: it must be there.
  absl::StatusOr<bool> Bool(const char* key,
                            std::optional<bool> fallback) const {
    const Json& value = Get(key);
    if (value.is_null() && fallback.has_value()) return *fallback;
    if (!value.is_boolean()) return WrongType(key, "true or false");
    return value.get<bool>();
  }

  // INVALID_ARGUMENT unless the value is absent, null, false or "".
  absl::Status RequireUnset(const char* key) const {
    const Json& value = Get(key);
    if (value.is_null() || value == Json(false) || value == Json("")) {
      return absl::OkStatus();
    }
    return Unsupported(key, value.dump().substr(0, 200));
  }

  absl::Status Unsupported(absl::string_view key,
                           absl::string_view value) const {
    return absl::InvalidArgumentError(absl::StrCat(
        kFile, ": ", place_, ".", key, " = ", value, " is not supported"));
  }
  absl::Status WrongType(absl::string_view key, absl::string_view type) const {
    return absl::InvalidArgumentError(
        absl::StrCat(kFile, ": ", place_, ".", key, " is not ", type));
  }

 private:
  Section(const Json& json, std::string place)
      : json_(json), place_(std::move(place)) {}

  const Json& json_;
  std::string place_;
};

absl::StatusOr<int32_t> TokenId(const Json& json, absl::string_view token) {
  if (json.is_number_unsigned() &&
      json.get<uint64_t>() < uint64_t{kMaxTokenIds}) {
    return static_cast<int32_t>(json.get<uint64_t>());
  }
  return absl::InvalidArgumentError(
      absl::StrCat(kFile, ": the id of \"", token, "\" is ", json.dump(),
                   ", not in 0..", kMaxTokenIds - 1));
}

absl::Status ParseSplit(const Json& json, std::string place,
                        TokenizerFile* file) {
  RING_ASSIGN_OR_RETURN(
      const Section split,
      Section::Open(json, place, {"type", "pattern", "behavior", "invert"}));
  RING_ASSIGN_OR_RETURN(const std::string behavior, split.String("behavior"));
  if (behavior != "Isolated") return split.Unsupported("behavior", behavior);
  RING_RETURN_IF_ERROR(split.RequireUnset("invert"));
  RING_ASSIGN_OR_RETURN(
      const Section pattern,
      Section::Open(split.Get("pattern"), place + ".pattern", {"Regex"}));
  RING_ASSIGN_OR_RETURN(std::string regex, pattern.String("Regex"));
  file->split_patterns.push_back(std::move(regex));
  return absl::OkStatus();
}

absl::Status ParseByteLevel(const Json& json, std::string place,
                            TokenizerFile* file) {
  RING_ASSIGN_OR_RETURN(
      const Section byte_level,
      Section::Open(json, std::move(place),
                    {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  RING_RETURN_IF_ERROR(byte_level.RequireUnset("add_prefix_space"));
  RING_ASSIGN_OR_RETURN(const bool use_regex,
                        byte_level.Bool("use_regex", true));
  if (use_regex) file->split_patterns.push_back(kByteLevelPattern);
  return absl::OkStatus();
}

// A Sequence of Split steps that ends with ByteLevel, or ByteLevel alone.
absl::Status ParsePreTokenizer(const Json& json, TokenizerFile* file) {
  const std::string place = "pre_tokenizer";
  const auto type_of = [](const Json& step) {
    return step.is_object() ? step.value("type", Json()) : Json();
  };
  if (type_of(json) == "ByteLevel") {
    return ParseByteLevel(json, place, file);
  }
  if (type_of(json) != "Sequence") {
    return absl::InvalidArgumentError(
        absl::StrCat(kFile, ": pre_tokenizer.type = ", type_of(json).dump(),
                     " is not supported"));
  }
  RING_ASSIGN_OR_RETURN(const Section sequence,
                        Section::Open(json, place, {"type", "pretokenizers"}));
  const Json& steps = sequence.Get("pretokenizers");
  if (!steps.is_array() || steps.empty()) {
    return sequence.WrongType("pretokenizers", "a list of steps");
  }
  for (size_t i = 0; i < steps.size(); ++i) {
    const std::string step_place =
        absl::StrCat("pre_tokenizer.pretokenizers[", i, "]");
    const Json type = type_of(steps[i]);
    const bool last = i + 1 == steps.size();
    if (type == "ByteLevel" && last) {
      RING_RETURN_IF_ERROR(ParseByteLevel(steps[i], step_place, file));
    } else if (type == "Split" && !last) {
      RING_RETURN_IF_ERROR(ParseSplit(steps[i], step_place, file));
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          kFile, ": ", step_place, ".type = ", type.dump(),
          last ? ": the last step must be ByteLevel" : " is not supported"));
    }
  }
  return absl::OkStatus();
}

absl::Status ParseMerges(const Section& model, TokenizerFile* file) {
  const Json& merges = model.Get("merges");
  if (!merges.is_array()) return model.WrongType("merges", "a list");
  file->merges.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    const Json& merge = merges[i];
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
        merge[1].is_string()) {
      file->merges.emplace_back(merge[0].get<std::string>(),
                                merge[1].get<std::string>());
      continue;
    }
    // The older form: both parts in one string. No token has a space in it.
    const std::string text =
        merge.is_string() ? merge.get<std::string>() : std::string();
    const size_t space = text.find(' ');
    if (space == std::string::npos || space == 0 || space + 1 == text.size() ||
        text.find(' ', space + 1) != std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat(
          kFile, ": model.merges[", i, "] is neither [a, b] nor \"a b\""));
    }
    file->merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return absl::OkStatus();
}

absl::Status ParseModel(const Json& json, TokenizerFile* file) {
  RING_ASSIGN_OR_RETURN(
      const Section model,
      Section::Open(
          json, "model",
          {"type", "dropout", "unk_token", "continuing_subword_prefix",
           "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges",
           "vocab", "merges"}));
  RING_ASSIGN_OR_RETURN(const std::string type, model.String("type"));
  if (type != "BPE") return model.Unsupported("type", type);
  // unk_token and fuse_unk have no effect: every byte is a token.
  for (const char* key : {"dropout", "continuing_subword_prefix",
                          "end_of_word_suffix", "byte_fallback"}) {
    RING_RETURN_IF_ERROR(model.RequireUnset(key));
  }
  RING_ASSIGN_OR_RETURN(file->ignore_merges,
                        model.Bool("ignore_merges", false));
  const Json& vocab = model.Get("vocab");
  if (!vocab.is_object()) return model.WrongType("vocab", "an object");
  file->vocab.reserve(vocab.size());
  for (const auto& [token, id_json] : vocab.items()) {
    RING_ASSIGN_OR_RETURN(const int32_t id, TokenId(id_json, token));
    file->vocab.emplace_back(token, id);
  }
  return ParseMerges(model, file);
}

absl::Status ParseAddedTokens(const Json& json, TokenizerFile* file) {
  if (json.is_null()) return absl::OkStatus();
  if (!json.is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(kFile, ": added_tokens is not a list"));
  }
  for (size_t i = 0; i < json.size(); ++i) {
    RING_ASSIGN_OR_RETURN(
        const Section entry,
        Section::Open(json[i], absl::StrCat("added_tokens[", i, "]"),
                      {"id", "content", "single_word", "lstrip", "rstrip",
                       "normalized", "special"}));
    AddedToken token;
    RING_ASSIGN_OR_RETURN(token.content, entry.String("content"));
    if (token.content.empty()) return entry.Unsupported("content", "\"\"");
    RING_ASSIGN_OR_RETURN(token.id, TokenId(entry.Get("id"), token.content));
    RING_RETURN_IF_ERROR(entry.RequireUnset("single_word"));
    RING_ASSIGN_OR_RETURN(token.lstrip, entry.Bool("lstrip", false));
    RING_ASSIGN_OR_RETURN(token.rstrip, entry.Bool("rstrip", false));
    RING_ASSIGN_OR_RETURN(token.special, entry.Bool("special", false));
    RING_ASSIGN_OR_RETURN(token.normalized,
                          entry.Bool("normalized", !token.special));
    file->added_tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

// These two may only be absent or ByteLevel, as which they change no id.
absl::Status RequireByteLevel(const Section& root, const char* key) {
  const Json& json = root.Get(key);
  const Json type = json.is_object() ? json.value("type", Json()) : Json();
  if (json.is_null() || type == "ByteLevel") return absl::OkStatus();
  return root.Unsupported(key, json.dump().substr(0, 200));
}

}  // namespace

absl::StatusOr<TokenizerFile> ParseTokenizerFile(absl::string_view text) {
  RING_ASSIGN_OR_RETURN(const Json json, ParseJson(text, kFile));
  RING_ASSIGN_OR_RETURN(
      const Section root,
      Section::Open(
          json, "the file",
          {"version", "truncation", "padding", "added_tokens", "normalizer",
           "pre_tokenizer", "post_processor", "decoder", "model"}));
  TokenizerFile file;
  for (const char* key : {"truncation", "padding", "normalizer"}) {
    RING_RETURN_IF_ERROR(root.RequireUnset(key));
  }
  RING_RETURN_IF_ERROR(RequireByteLevel(root, "post_processor"));
  if (root.Get("decoder").is_null()) {
    return root.Unsupported("decoder", "null");
  }
  RING_RETURN_IF_ERROR(RequireByteLevel(root, "decoder"));
  RING_RETURN_IF_ERROR(ParsePreTokenizer(root.Get("pre_tokenizer"), &file));
  RING_RETURN_IF_ERROR(ParseModel(root.Get("model"), &file));
  RING_RETURN_IF_ERROR(ParseAddedTokens(root.Get("added_tokens"), &file));
  return file;
}

absl::Status CheckTokenizerConfig(absl::string_view text) {
  constexpr absl::string_view kConfig = "tokenizer_config.json";
  RING_ASSIGN_OR_RETURN(const Json json, ParseJson(text, kConfig));
  for (const char* key : {"add_bos_token", "add_eos_token", "add_prefix_space",
                          "clean_up_tokenization_spaces"}) {
    if (json.is_object() && json.contains(key) && !json[key].is_null() &&
        json[key] != Json(false)) {
      return absl::InvalidArgumentError(absl::StrCat(
          kConfig, ": ", key, " = ", json[key].dump(), " is not supported"));
    }
  }
  return absl::OkStatus();
}

}  // namespace ring
