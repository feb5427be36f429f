#include "coordinator/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/added_tokens.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/byte_level.h"
#include "coordinator/text/pre_tokenizer.h"
#include "coordinator/text/tokenizer_file.h"
#include "coordinator/text/utf8.h"
#include "kernels/base/status_macros.h"
#include "kernels/base/text_file.h"

namespace ring {
namespace {

constexpr absl::string_view kGuard = "\xEF\xB7\x90";  // U+FDD0
constexpr size_t kMaxTextBytes = size_t{1} << 30;
constexpr int64_t kMaxFileBytes = int64_t{256} << 20;

// Words repeat, so one call remembers what it has already encoded. Long words
// are left out: they repeat rarely and cost a hash of all their bytes.
constexpr size_t kMaxCachedWords = size_t{1} << 16;
constexpr size_t kMaxCachedWordBytes = 64;

// What is known of one id.
struct Token {
  std::string bytes = std::string(kReplacementCharacter);
  bool used = false;
  bool special = false;
};

// Cuts text at its guards: `guarded` is given the character after each, `open`
// what stands between. Both in order.
void ForEachGuarded(absl::string_view text,
                    absl::FunctionRef<void(absl::string_view)> open,
                    absl::FunctionRef<void(absl::string_view)> guarded) {
  while (true) {
    const size_t guard = text.find(kGuard);
    open(text.substr(0, guard));
    if (guard == text.npos) return;
    text.remove_prefix(guard + kGuard.size());
    size_t end = 0;
    if (!text.empty()) NextCodePoint(text, &end);
    guarded(text.substr(0, end));
    text.remove_prefix(end);
  }
}

}  // namespace

struct Tokenizer::Parts {
  std::vector<Token> tokens;  // by id
  Bpe bpe;
  // Whole words that are tokens, by their bytes; empty unless ignore_merges.
  absl::flat_hash_map<std::string, int32_t> whole_words;
  std::unique_ptr<const PreTokenizer> pre_tokenizer;
  AddedTokenMatcher matcher;
  absl::flat_hash_map<std::string, int32_t> added_ids;
};

namespace {

// Encodes the words of one text. Confined to one call.
class WordEncoder {
 public:
  WordEncoder(const Bpe& bpe,
              const absl::flat_hash_map<std::string, int32_t>& whole_words,
              std::vector<int32_t>* ids)
      : bpe_(bpe), whole_words_(whole_words), ids_(ids) {}

  // `word` must stay valid as long as this.
  void Encode(absl::string_view word) {
    if (word.size() > kMaxCachedWordBytes) {
      EncodeAnew(word);
      return;
    }
    if (const auto seen = cache_.find(word); seen != cache_.end()) {
      const auto [begin, count] = seen->second;
      for (size_t i = begin; i < begin + count; ++i) {
        const int32_t id = (*ids_)[i];
        ids_->push_back(id);
      }
      return;
    }
    const size_t begin = ids_->size();
    EncodeAnew(word);
    if (cache_.size() < kMaxCachedWords) {
      cache_.emplace(word, Range{begin, ids_->size() - begin});
    }
  }

 private:
  // Where in *ids_ the word was encoded before.
  struct Range {
    size_t begin;
    size_t count;
  };

  void EncodeAnew(absl::string_view word) {
    if (!whole_words_.empty()) {
      if (const auto whole = whole_words_.find(word);
          whole != whole_words_.end()) {
        ids_->push_back(whole->second);
        return;
      }
    }
    bpe_.Encode(word, &scratch_, ids_);
  }

  const Bpe& bpe_;
  const absl::flat_hash_map<std::string, int32_t>& whole_words_;
  std::vector<int32_t>* const ids_;
  Bpe::Scratch scratch_;
  absl::flat_hash_map<absl::string_view, Range> cache_;
};

absl::Status Invalid(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", what));
}

// The tokens by id. Added tokens may repeat an entry of the vocabulary.
absl::StatusOr<std::vector<Token>> BuildTokens(const TokenizerFile& file) {
  int32_t highest = -1;
  for (const auto& [text, id] : file.vocab) highest = std::max(highest, id);
  for (const auto& token : file.added_tokens) {
    highest = std::max(highest, token.id);
  }
  std::vector<Token> tokens(static_cast<size_t>(highest) + 1);
  absl::flat_hash_map<absl::string_view, int32_t> vocab;
  for (const auto& [text, id] : file.vocab) {
    if (tokens[id].used) {
      return Invalid(absl::StrCat("two tokens have the id ", id));
    }
    tokens[id] = {AlphabetToBytes(text).value_or(text), true, false};
    vocab.emplace(text, id);
  }
  for (const AddedToken& token : file.added_tokens) {
    const auto in_vocab = vocab.find(token.content);
    const bool same = in_vocab != vocab.end() && in_vocab->second == token.id;
    if (in_vocab != vocab.end() && !same) {
      return Invalid(absl::StrCat("\"", token.content, "\" has the ids ",
                                  in_vocab->second, " and ", token.id));
    }
    if (tokens[token.id].used && !same) {
      return Invalid(absl::StrCat("two tokens have the id ", token.id));
    }
    tokens[token.id] = {token.content, true, token.special};
    vocab.emplace(token.content, token.id);
  }
  return tokens;
}

absl::StatusOr<Bpe> BuildBpe(const TokenizerFile& file) {
  absl::flat_hash_map<absl::string_view, int32_t> vocab(file.vocab.begin(),
                                                        file.vocab.end());
  std::array<int32_t, 256> byte_ids;
  for (int byte = 0; byte < 256; ++byte) {
    const auto id = vocab.find(ByteToAlphabet(static_cast<uint8_t>(byte)));
    if (id == vocab.end()) {
      return Invalid(
          absl::StrCat("model.vocab has no token for the single byte ", byte));
    }
    byte_ids[byte] = id->second;
  }
  std::vector<Bpe::Merge> merges;
  merges.reserve(file.merges.size());
  for (const auto& [left, right] : file.merges) {
    std::array<int32_t, 3> ids;
    const std::string merged = left + right;
    int i = 0;
    for (const absl::string_view part :
         {absl::string_view(left), absl::string_view(right),
          absl::string_view(merged)}) {
      const auto id = vocab.find(part);
      if (id == vocab.end()) {
        return Invalid(absl::StrCat("model.merges[", merges.size(), "]: \"",
                                    part, "\" is not in model.vocab"));
      }
      ids[i++] = id->second;
    }
    merges.push_back({ids[0], ids[1], ids[2]});
  }
  return Bpe(byte_ids, merges);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(
    const std::string& model_dir) {
  RING_ASSIGN_OR_RETURN(
      const std::string text,
      ReadTextFile(model_dir + "/tokenizer.json", kMaxFileBytes));
  const absl::StatusOr<std::string> config =
      ReadTextFile(model_dir + "/tokenizer_config.json", kMaxFileBytes);
  if (config.ok()) {
    RING_RETURN_IF_ERROR(CheckTokenizerConfig(*config));
  } else if (!absl::IsNotFound(config.status())) {
    return config.status();
  }
  return FromJson(text);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(
    absl::string_view tokenizer_json) {
  RING_ASSIGN_OR_RETURN(const TokenizerFile file,
                        ParseTokenizerFile(tokenizer_json));
  RING_ASSIGN_OR_RETURN(std::vector<Token> tokens, BuildTokens(file));
  RING_ASSIGN_OR_RETURN(Bpe bpe, BuildBpe(file));
  RING_ASSIGN_OR_RETURN(std::unique_ptr<PreTokenizer> pre_tokenizer,
                        PreTokenizer::Create(file.split_patterns));
  absl::flat_hash_map<std::string, int32_t> whole_words;
  if (file.ignore_merges) {
    for (const auto& [text, id] : file.vocab) {
      std::optional<std::string> bytes = AlphabetToBytes(text);
      if (bytes.has_value()) whole_words.emplace(*std::move(bytes), id);
    }
  }
  absl::flat_hash_map<std::string, int32_t> added_ids;
  for (const AddedToken& token : file.added_tokens) {
    added_ids.emplace(token.content, token.id);
  }
  auto parts = std::make_unique<Parts>(
      Parts{std::move(tokens), std::move(bpe), std::move(whole_words),
            std::move(pre_tokenizer), AddedTokenMatcher(file.added_tokens),
            std::move(added_ids)});
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(parts)));
}

Tokenizer::Tokenizer(std::unique_ptr<const Parts> parts)
    : parts_(std::move(parts)) {}

Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text,
                                                       AddedTokens mode) const {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("encoding a text of ", text.size(),
                     " bytes: the limit is ", kMaxTextBytes));
  }
  if (const size_t valid = ValidUtf8Prefix(text); valid != text.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("encoding text: not UTF-8 at byte ", valid));
  }
  std::vector<int32_t> ids;
  WordEncoder words(parts_->bpe, parts_->whole_words, &ids);
  PreTokenizer::Scratch scratch;
  absl::Status status;
  const auto encode_plain = [&](absl::string_view plain) {
    if (!status.ok()) return;
    status = parts_->pre_tokenizer->Split(
        plain, &scratch, [&](absl::string_view word) { words.Encode(word); });
  };
  const auto add_id = [&](int32_t id) { ids.push_back(id); };
  std::string unguarded;
  switch (mode) {
    case AddedTokens::kRecognise:
      parts_->matcher.Split(text, encode_plain, add_id);
      break;
    case AddedTokens::kPlainText:
      encode_plain(text);
      break;
    case AddedTokens::kGuarded:
      SplitGuarded(text, &unguarded, encode_plain, add_id);
      break;
  }
  RING_RETURN_IF_ERROR(status);
  return ids;
}

void Tokenizer::SplitGuarded(absl::string_view text, std::string* unguarded,
                             absl::FunctionRef<void(absl::string_view)> plain,
                             absl::FunctionRef<void(int32_t)> token) const {
  unguarded->reserve(text.size());  // so that what `plain` was given stays
  size_t begin = 0;                 // of the plain text that goes on
  const auto flush = [&] {
    const absl::string_view rest = absl::string_view(*unguarded).substr(begin);
    if (!rest.empty()) plain(rest);
    begin = unguarded->size();
  };
  const auto append = [&](absl::string_view more) {
    unguarded->append(more.data(), more.size());
  };
  ForEachGuarded(
      text,
      [&](absl::string_view open) {
        parts_->matcher.Split(open, append, [&](int32_t id) {
          flush();
          token(id);
        });
      },
      append);
  flush();
}

std::string Tokenizer::Guard(absl::string_view text) const {
  std::string guarded;
  size_t done = 0;
  const auto copy_until = [&](size_t end, bool is_match) {
    while (done < end) {
      const size_t begin = done;
      NextCodePoint(text, &done);
      const absl::string_view character = text.substr(begin, done - begin);
      if (is_match || character == kGuard) absl::StrAppend(&guarded, kGuard);
      absl::StrAppend(&guarded, character);
    }
  };
  parts_->matcher.Split(
      text,
      [&](absl::string_view plain) {
        const size_t begin = plain.data() - text.data();
        copy_until(begin, true);
        copy_until(begin + plain.size(), false);
      },
      [](int32_t) {});
  copy_until(text.size(), true);
  return guarded;
}

std::string Tokenizer::Unguard(absl::string_view guarded) {
  std::string text;
  const auto append = [&](absl::string_view part) {
    text.append(part.data(), part.size());
  };
  ForEachGuarded(guarded, append, append);
  return text;
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids,
                              bool keep_special) const {
  std::string text;
  Utf8Repairer repairer;
  for (const int32_t id : ids) {
    if (keep_special || !IsSpecial(id)) repairer.Append(TokenBytes(id), &text);
  }
  repairer.Finish(&text);
  return text;
}

absl::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= num_token_ids()) return kReplacementCharacter;
  return parts_->tokens[id].bytes;
}

int32_t Tokenizer::num_token_ids() const {
  return static_cast<int32_t>(parts_->tokens.size());
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < num_token_ids() && parts_->tokens[id].special;
}

std::optional<int32_t> Tokenizer::AddedTokenId(absl::string_view text) const {
  const auto found = parts_->added_ids.find(text);
  if (found == parts_->added_ids.end()) return std::nullopt;
  return found->second;
}

}  // namespace ring
