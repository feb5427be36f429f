// Constants that both ends of a connection must agree on.
#pragma once

namespace ring {

// Of Hello and Welcome: raised when cluster.proto changes its meaning.
inline constexpr int kProtocolVersion = 3;

// Largest message in either direction.
inline constexpr int kMaxMessageBytes = 64 << 20;

// A peer that does not answer a ping, sent after 2 s of silence, within 3 s is
// gone: that is how a stopped process and a cut cable are noticed.
inline constexpr int kKeepaliveTimeMs = 2000;
inline constexpr int kKeepaliveTimeoutMs = 3000;

}  // namespace ring
