// What `ring status` shows.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/cli/connection.h"
#include "ring/v1/inference.pb.h"

namespace ring {

struct ServerStatus {
  v1::GetModelResponse model;
  v1::GetLoadResponse load;

  // A group takes requests.
  bool serving() const;
};

// Asks a server for it, as often as wanted. Confined to one thread, but for
// Cancel.
class StatusReader {
 public:
  // Connects with the first Ask. `connection` outlives this.
  explicit StatusReader(const Connection& connection);
  ~StatusReader();

  absl::StatusOr<ServerStatus> Ask();

  // From any thread: the Ask under way and all later ones end with CANCELLED.
  void Cancel();

 private:
  struct Calls;
  const Connection& connection_;
  const std::unique_ptr<Calls> calls_;
};

// Lines for people, each with its newline. `server`: HOST:PORT.
std::string StatusText(const std::string& server, const ServerStatus& status);

// One line with one JSON object.
std::string StatusJson(const ServerStatus& status);

}  // namespace ring
