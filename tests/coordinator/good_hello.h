// The first message of a worker group that is well.
#pragma once

#include <cstdint>
#include <string>

#include "proto/protocol.h"
#include "ring/v1/cluster.pb.h"

namespace ring::testing {

// A Hello that a coordinator of `model_digest` takes: room for
// `max_sequences` sequences and 100,000 tokens.
inline v1::Hello GoodHello(const std::string& model_digest,
                           int64_t max_sequences = 4) {
  v1::Hello hello;
  hello.set_protocol_version(kProtocolVersion);
  hello.set_group_key(1);
  hello.set_epoch(1);
  hello.set_model_digest(model_digest);
  hello.set_dp(1);
  hello.set_tp(1);
  hello.set_max_sequences(max_sequences);
  hello.set_kv_tokens(100000);
  hello.set_max_batch_tokens(256);
  hello.set_context_length(16384);
  hello.set_host("fake");
  hello.set_pid(1234);
  hello.set_device("cpu");
  return hello;
}

}  // namespace ring::testing
