// The load of serve_bench.py: N clients that ask one request after the other.
//
//   serve_client HOST:PORT STREAMS SECONDS
//
// Requests draw at a temperature so high that a completion of the bundled model
// ends at any token with the same small chance: some hundred tokens each.
// Prints one JSON object.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "ring/v1/inference.grpc.pb.h"

namespace ring {
namespace {

using Clock = std::chrono::steady_clock;

struct Window {
  Clock::time_point begin;
  Clock::time_point end;
};

// What one client saw.
struct Counts {
  int64_t all_tokens = 0;  // those before the window too
  int64_t tokens = 0;
  int64_t requests = 0;
  std::vector<double> gaps_us;  // between messages with tokens
  std::string error;
};

v1::GenerateRequest MakeRequest(uint64_t seed) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(5);
  request.mutable_sampling()->set_temperature(100);
  request.mutable_sampling()->set_seed(seed);
  request.mutable_stopping()->set_max_tokens(1000);
  return request;
}

// Asks until the window ends; counts what comes within it.
void Ask(const std::string& address, uint64_t first_seed, const Window& window,
         Counts* counts) {
  const auto stub = v1::Inference::NewStub(
      grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  for (uint64_t seed = first_seed; Clock::now() < window.end; ++seed) {
    grpc::ClientContext context;
    const auto stream = stub->Generate(&context, MakeRequest(seed));
    v1::GenerateEvent event;
    Clock::time_point last{};
    while (stream->Read(&event)) {
      const Clock::time_point now = Clock::now();
      if (now > window.end) context.TryCancel();
      if (!event.has_delta()) continue;
      counts->all_tokens += event.delta().token_ids_size();
      if (now < window.begin || now > window.end) continue;
      counts->tokens += event.delta().token_ids_size();
      if (last != Clock::time_point{}) {
        counts->gaps_us.push_back(
            std::chrono::duration<double, std::micro>(now - last).count());
      }
      last = now;
    }
    const grpc::Status status = stream->Finish();
    if (Clock::now() > window.end) return;
    if (!status.ok()) {
      counts->error = status.error_message();
      return;
    }
    ++counts->requests;
  }
}

int Main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: serve_client HOST:PORT STREAMS SECONDS\n";
    return 2;
  }
  const int streams = std::atoi(argv[2]);
  const std::chrono::duration<double> seconds(std::atof(argv[3]));
  Window window;
  // Connections and the first requests lie before the window.
  window.begin = Clock::now() + std::chrono::milliseconds(500);
  window.end =
      window.begin + std::chrono::duration_cast<Clock::duration>(seconds);
  std::vector<Counts> counts(streams);
  std::vector<std::thread> threads;
  for (int i = 0; i < streams; ++i) {
    threads.emplace_back([&, i] {
      Ask(argv[1], static_cast<uint64_t>(i) * 1000 + 1, window, &counts[i]);
    });
  }
  for (std::thread& thread : threads) thread.join();

  Counts all;
  for (const Counts& each : counts) {
    if (!each.error.empty()) {
      std::cerr << each.error << "\n";
      return 1;
    }
    all.all_tokens += each.all_tokens;
    all.tokens += each.tokens;
    all.requests += each.requests;
    all.gaps_us.insert(all.gaps_us.end(), each.gaps_us.begin(),
                       each.gaps_us.end());
  }
  if (all.gaps_us.empty()) {
    std::cerr << "no tokens came\n";
    return 1;
  }
  std::sort(all.gaps_us.begin(), all.gaps_us.end());
  const auto quantile = [&](double q) {
    return all.gaps_us[static_cast<size_t>(
        q * static_cast<double>(all.gaps_us.size() - 1))];
  };
  std::cout << "{\"all_tokens\": " << all.all_tokens
            << ", \"requests\": " << all.requests
            << ", \"tokens_per_s\": " << all.tokens / seconds.count()
            << ", \"gap_us_p50\": " << quantile(0.5)
            << ", \"gap_us_p99\": " << quantile(0.99) << "}\n";
  return 0;
}

}  // namespace
}  // namespace ring

int main(int argc, char** argv) { return ring::Main(argc, argv); }
