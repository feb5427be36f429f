#include "tests/coordinator/fake_group.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "proto/status.h"

namespace ring::testing {
namespace {

std::chrono::steady_clock::time_point Patience() {
  return std::chrono::steady_clock::now() + std::chrono::seconds(10);
}

}  // namespace

FakeGroup::FakeGroup(const std::string& address, const v1::Hello& hello) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  channel_ = grpc::CreateCustomChannel(
      address, grpc::InsecureChannelCredentials(), arguments);
  stub_ = v1::Cluster::NewStub(channel_);
  stream_ = stub_->Join(&context_);
  v1::FromWorker message;
  *message.mutable_hello() = hello;
  stream_->Write(message);
  reader_ = std::thread([this] { Read(); });
}

FakeGroup::~FakeGroup() {
  Break();
  reader_.join();
}

void FakeGroup::Read() {
  v1::ToWorker message;
  while (stream_->Read(&message)) {
    MutexLock lock(&mutex_);
    came_.push_back(message);
    changed_.NotifyAll();
  }
  const absl::Status status = FromGrpcStatus(stream_->Finish());
  MutexLock lock(&mutex_);
  ended_ = true;
  status_ = status;
  changed_.NotifyAll();
}

bool FakeGroup::Take(v1::ToWorker::MessageCase kind, v1::ToWorker* message) {
  const auto deadline = Patience();
  MutexLock lock(&mutex_);
  while (true) {
    const auto it = std::find_if(came_.begin(), came_.end(),
                                 [kind](const v1::ToWorker& candidate) {
                                   return candidate.message_case() == kind;
                                 });
    if (it != came_.end()) {
      *message = *it;
      came_.erase(it);
      return true;
    }
    if (ended_) return false;
    if (!changed_.WaitUntil(&mutex_, deadline)) {
      ADD_FAILURE() << "no message of kind " << kind << " came";
      return false;
    }
  }
}

bool FakeGroup::WaitForWelcome(v1::Welcome* welcome) {
  v1::ToWorker message;
  if (!Take(v1::ToWorker::kWelcome, &message)) return false;
  if (welcome != nullptr) *welcome = message.welcome();
  return true;
}

v1::Submit FakeGroup::WaitForSubmit() {
  v1::ToWorker message;
  EXPECT_TRUE(Take(v1::ToWorker::kSubmit, &message));
  return message.submit();
}

uint64_t FakeGroup::WaitForCancel() {
  v1::ToWorker message;
  EXPECT_TRUE(Take(v1::ToWorker::kCancel, &message));
  return message.cancel().id();
}

bool FakeGroup::WaitForDrain() {
  v1::ToWorker message;
  return Take(v1::ToWorker::kDrain, &message);
}

absl::Status FakeGroup::WaitForEnd() {
  const auto deadline = Patience();
  MutexLock lock(&mutex_);
  while (!ended_) {
    if (!changed_.WaitUntil(&mutex_, deadline)) {
      ADD_FAILURE() << "the stream did not end";
      break;
    }
  }
  return status_;
}

void FakeGroup::SendTokens(uint64_t id, const std::vector<int32_t>& tokens,
                           v1::GroupFinish finish, int likely_tokens) {
  auto it = std::find_if(next_index_.begin(), next_index_.end(),
                         [id](const auto& entry) { return entry.first == id; });
  if (it == next_index_.end()) it = next_index_.insert(it, {id, 0});
  v1::FromWorker message;
  v1::RequestTokens* news = message.mutable_tokens()->add_requests();
  news->set_id(id);
  news->set_start_index(it->second);
  for (const int32_t token : tokens) {
    news->add_token_ids(token);
    news->add_logprobs(-0.5f);
    if (likely_tokens == 0) continue;
    v1::TopLogprobs* const top = news->add_top_logprobs();
    for (int i = 0; i < likely_tokens; ++i) {
      top->add_token_ids(i);
      top->add_logprobs(-0.5f);
    }
  }
  news->set_finish(finish);
  if (it->second == 0) {
    news->set_queue_us(10);
    news->set_prefill_us(20);
  }
  it->second += static_cast<int64_t>(tokens.size());
  Send(message);
}

void FakeGroup::Send(const v1::FromWorker& message) { stream_->Write(message); }

void FakeGroup::Break() { context_.TryCancel(); }

}  // namespace ring::testing
