// What a worker group says on its Join stream, beside a group that is well.
// The bytes are messages, one byte with the length before each.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "coordinator/group_session.h"
#include "kernels/base/log.h"
#include "proto/protocol.h"
#include "tests/coordinator/dispatcher_fakes.h"

namespace ring {
namespace {

using testing::ClientStream;
using testing::Info;
using testing::kEos;
using testing::Link;
using testing::RequestArgs;
using testing::Tokens;

constexpr char kDigest[] = "digest";
// A leader draws its key at random, so that no other has it.
constexpr uint64_t kGoodKey = 0x9e3779b97f4a7c15;

class Game {
 public:
  Game() {
    good_ = *dispatcher_.AddGroup(Info(kGoodKey, 2), good_link_);
    RequestOptions options;
    options.max_tokens = 100;
    AddClient(options);
  }

  // False: the group had to leave.
  bool Receive(const v1::FromWorker& message) {
    const absl::Status status = session_.Receive(message, link_);
    CheckBooks();
    if (status.ok()) {
      if (message.has_hello()) AddClients();
      return true;
    }
    RING_CHECK(!status.message().empty());
    RING_CHECK_LT(status.message().size(), 2000u);
    return false;
  }

  // The group leaves; the other one serves all that its going did not end.
  void End() {
    session_.Leave(absl::CancelledError("test"));
    v1::Submit submit;
    while (dispatcher_.live_requests() > 0 && good_link_->Next(&submit)) {
      RING_CHECK_EQ(submit.generated_ids_size(), 0);
      ClientStream& client = *clients_.at(submit.id());
      RING_CHECK(!client.closed()) << "request " << submit.id();
      RING_CHECK_EQ(client.tokens(), 0);
      v1::TokenEvents events = Tokens(submit.id(), 0, kEos);
      events.mutable_requests(0)->add_logprobs(-1);
      dispatcher_.OnTokens(good_, events);
      RING_CHECK(client.WaitForEnd().ok()) << "request " << submit.id();
    }
    for (const auto& [id, client] : clients_) {
      RING_CHECK(client->closed()) << "request " << id;
      RING_CHECK_LE(client->tokens(), 100);
    }
    CheckBooks();
    const v1::GetLoadResponse load = dispatcher_.GetLoad();
    RING_CHECK_EQ(load.groups_size(), 1);
    RING_CHECK_EQ(load.groups(0).assigned_requests(), 0);
    RING_CHECK_EQ(load.groups(0).assigned_tokens(), 0);
    RING_CHECK_EQ(load.finished_requests() + load.failed_requests(),
                  static_cast<int64_t>(clients_.size()));
  }

 private:
  // Of each kind of options that the news of a group are checked against.
  void AddClients() {
    RequestOptions options;
    options.max_tokens = 100;
    AddClient(options);
    options.stop_strings = {"a", "in"};
    AddClient(options);
    options.logprobs = true;
    options.max_tokens = 3;
    AddClient(options);
  }

  void AddClient(RequestOptions options) {
    const auto client = std::make_shared<ClientStream>();
    Request::Args args = RequestArgs(&dispatcher_, client);
    args.options = std::move(options);
    clients_[args.id] = client;
    const absl::Status submitted =
        dispatcher_.Submit(std::make_shared<Request>(std::move(args)));
    RING_CHECK(submitted.ok()) << submitted.ToString();
  }

  void CheckBooks() {
    const v1::GetLoadResponse load = dispatcher_.GetLoad();
    int64_t assigned = 0;
    for (const v1::GroupLoad& group : load.groups()) {
      RING_CHECK_GE(group.assigned_requests(), 0);
      RING_CHECK_GE(group.assigned_tokens(), 0);
      RING_CHECK_LE(group.assigned_tokens(), group.kv_tokens());
      assigned += group.assigned_requests();
    }
    RING_CHECK_EQ(load.running(), assigned);
    RING_CHECK_EQ(load.running() + load.queued(), dispatcher_.live_requests());
  }

  const std::string digest_ = kDigest;
  Dispatcher dispatcher_{{.model_name = "tiny", .num_token_ids = 813}};
  const std::shared_ptr<Link> good_link_ = std::make_shared<Link>();
  const std::shared_ptr<Link> link_ = std::make_shared<Link>();
  GroupSession session_{&digest_, &dispatcher_};
  int64_t good_ = 0;
  std::map<uint64_t, std::shared_ptr<ClientStream>> clients_;
};

}  // namespace
}  // namespace ring

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ring::SetLogLevel(ring::LogLevel::kError);
  ring::Game game;
  while (size > 0) {
    const size_t length = std::min<size_t>(data[0], size - 1);
    ring::v1::FromWorker message;
    if (!message.ParseFromArray(data + 1, static_cast<int>(length))) break;
    if (message.hello().group_key() == ring::kGoodKey) break;
    // 0 is the version of the day: what is in the corpus outlives it.
    if (message.has_hello() && message.hello().protocol_version() == 0) {
      message.mutable_hello()->set_protocol_version(ring::kProtocolVersion);
    }
    if (!game.Receive(message)) break;
    data += 1 + length;
    size -= 1 + length;
  }
  game.End();
  return 0;
}
