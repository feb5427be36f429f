#include "coordinator/group_session.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "coordinator/text/utf8.h"
#include "kernels/base/status_macros.h"
#include "proto/protocol.h"

namespace ring {
namespace {

// Bounds that keep the sums of a group in range whatever it claims.
constexpr int64_t kMaxCapacity = int64_t{1} << 40;
constexpr int kMaxRanks = 1 << 16;
// Of a name that a group gives: Linux allows hosts 64.
constexpr size_t kMaxNameBytes = 255;
// Of a group's words to a client: gRPC carries them in metadata of 8 KB.
constexpr size_t kMaxErrorBytes = 1024;

absl::Status CheckRange(absl::string_view name, int64_t value, int64_t min,
                        int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " = ", value, " is not in [", min, ", ", max, "]"));
}

// Names go to logs and terminals.
absl::Status CheckName(absl::string_view name, absl::string_view value) {
  if (value.size() > kMaxNameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has ", value.size(), " bytes, more than the ",
                     kMaxNameBytes, " that are allowed"));
  }
  if (std::all_of(value.begin(), value.end(), absl::ascii_isprint)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      name, " = \"", absl::CEscape(value), "\" is not printable ASCII"));
}

absl::Status CheckLoad(const v1::Load& load) {
  const std::pair<absl::string_view, int64_t> counts[] = {
      {"Load.free_pages", load.free_pages()},
      {"Load.free_slots", load.free_slots()},
      {"Load.free_tokens", load.free_tokens()},
      {"Load.queued", load.queued()},
      {"Load.running", load.running()}};
  for (const auto& [name, count] : counts) {
    RING_RETURN_IF_ERROR(CheckRange(name, count, 0, kMaxRanks * kMaxCapacity));
  }
  return absl::OkStatus();
}

// OK, or a number that is no code, becomes UNKNOWN: the group meant to report
// an error. A long message is cut.
absl::Status ReadError(const v1::RequestFailed& failed) {
  constexpr int kLastCode =
      static_cast<int>(absl::StatusCode::kUnauthenticated);
  const bool known = failed.code() > 0 && failed.code() <= kLastCode;
  absl::string_view message(failed.message());
  if (message.size() > kMaxErrorBytes) {
    message = message.substr(0, kMaxErrorBytes);
    message = message.substr(0, ValidUtf8Prefix(message));
  }
  return absl::Status(known ? static_cast<absl::StatusCode>(failed.code())
                            : absl::StatusCode::kUnknown,
                      message);
}

}  // namespace

absl::StatusOr<GroupInfo> ReadHello(const v1::Hello& hello,
                                    const std::string& model_digest) {
  if (hello.protocol_version() != kProtocolVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the worker speaks protocol version ", hello.protocol_version(),
        ", the coordinator ", kProtocolVersion, ": install the same release"));
  }
  RING_RETURN_IF_ERROR(CheckName("Hello.model_digest", hello.model_digest()));
  if (hello.model_digest() != model_digest) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the worker has another model: its digest is ", hello.model_digest(),
        ", the coordinator's ", model_digest, ": give both the same --model"));
  }
  RING_RETURN_IF_ERROR(CheckRange("Hello.dp", hello.dp(), 1, kMaxRanks));
  RING_RETURN_IF_ERROR(CheckRange("Hello.tp", hello.tp(), 1, kMaxRanks));
  const std::pair<absl::string_view, int64_t> capacities[] = {
      {"Hello.max_sequences", hello.max_sequences()},
      {"Hello.kv_tokens", hello.kv_tokens()},
      {"Hello.max_batch_tokens", hello.max_batch_tokens()},
      {"Hello.context_length", hello.context_length()}};
  for (const auto& [name, capacity] : capacities) {
    RING_RETURN_IF_ERROR(CheckRange(name, capacity, 1, kMaxCapacity));
  }
  RING_RETURN_IF_ERROR(CheckName("Hello.host", hello.host()));
  RING_RETURN_IF_ERROR(CheckName("Hello.device", hello.device()));
  GroupInfo info;
  info.key = hello.group_key();
  info.epoch = hello.epoch();
  info.host = hello.host();
  info.pid = hello.pid();
  info.device = hello.device();
  info.dp = hello.dp();
  info.tp = hello.tp();
  info.max_sequences = hello.max_sequences();
  info.kv_tokens = hello.kv_tokens();
  info.max_batch_tokens = hello.max_batch_tokens();
  info.context_length = hello.context_length();
  return info;
}

absl::Status GroupSession::Receive(const v1::FromWorker& message,
                                   const std::shared_ptr<GroupLink>& link) {
  if (group_ == 0) return Join(message, link);
  switch (message.message_case()) {
    case v1::FromWorker::kLoad:
      RING_RETURN_IF_ERROR(CheckLoad(message.load()));
      dispatcher_->OnLoad(group_, message.load());
      return absl::OkStatus();
    case v1::FromWorker::kTokens:
      dispatcher_->OnTokens(group_, message.tokens());
      return absl::OkStatus();
    case v1::FromWorker::kFailed:
      dispatcher_->OnFailed(group_, message.failed().id(),
                            ReadError(message.failed()));
      return absl::OkStatus();
    case v1::FromWorker::kHello:
      return absl::InvalidArgumentError("a second Hello on one stream");
    case v1::FromWorker::MESSAGE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("a message of an unknown kind");
}

absl::Status GroupSession::Join(const v1::FromWorker& message,
                                const std::shared_ptr<GroupLink>& link) {
  if (!message.has_hello()) {
    return absl::InvalidArgumentError(
        "the first message on a Join stream has to be Hello");
  }
  RING_ASSIGN_OR_RETURN(GroupInfo info,
                        ReadHello(message.hello(), model_digest_));
  RING_ASSIGN_OR_RETURN(group_, dispatcher_->AddGroup(std::move(info), link));
  return absl::OkStatus();
}

void GroupSession::Leave(const absl::Status& why) {
  if (group_ != 0) dispatcher_->RemoveGroup(group_, std::string(why.message()));
}

}  // namespace ring
