#include "worker/model_files/digest.h"

#include <openssl/evp.h>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "kernels/base/text_file.h"
#include "worker/model_files/checkpoint.h"
#include "worker/model_files/read_only_file.h"
#include "worker/model_files/safetensors.h"

namespace ring {
namespace {

constexpr int64_t kMaxTextFileBytes = int64_t{256} << 20;

// One part of what is hashed: its name and length stand before it, so that no
// two different folders run together into the same bytes.
std::string Part(absl::string_view name, absl::string_view bytes) {
  return absl::StrCat(name, " ", bytes.size(), "\n", bytes);
}

}  // namespace

std::string Sha256Hex(absl::string_view bytes) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int digest_bytes = 0;
  RING_CHECK_EQ(EVP_Digest(bytes.data(), bytes.size(), digest, &digest_bytes,
                           EVP_sha256(), nullptr),
                1);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), digest_bytes));
}

absl::StatusOr<std::string> ModelDigest(const std::string& model_dir) {
  std::string all;
  bool has_index = false;
  for (const std::string name :
       {"config.json", "tokenizer.json", kIndexFileName}) {
    const auto text =
        ReadTextFile(absl::StrCat(model_dir, "/", name), kMaxTextFileBytes);
    if (absl::IsNotFound(text.status()) && name != "config.json") {
      absl::StrAppend(&all, Part(absl::StrCat("no ", name), ""));
      continue;
    }
    RING_RETURN_IF_ERROR(text.status());
    absl::StrAppend(&all, Part(name, *text));
    has_index = has_index || name == kIndexFileName;
  }
  const auto checkpoint = Checkpoint::Open(model_dir);
  if (absl::IsNotFound(checkpoint.status()) && !has_index) {
    return Sha256Hex(all);
  }
  RING_RETURN_IF_ERROR(checkpoint.status());
  for (const ReadOnlyFile& file : checkpoint->files()) {
    RING_ASSIGN_OR_RETURN(const std::string header,
                          ReadRawSafetensorsHeader(file));
    // Without the folder, which differs between hosts.
    const size_t name = file.path().rfind('/') + 1;
    absl::StrAppend(&all, Part(file.path().substr(name), header));
  }
  return Sha256Hex(all);
}

}  // namespace ring
