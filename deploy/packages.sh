#!/usr/bin/env bash
# Debian and Ubuntu packages that Ringmaster needs. The only place with package
# names: every other script asks this one.
#
#   packages.sh install GROUP...   install what is missing (root or sudo)
#   packages.sh missing GROUP...   print what is missing, one name a line
#
# Groups: build (compiler and libraries), test (what the test suite runs),
# sanitize (clang and its runtimes), cross (aarch64 compiler), slurm (a Slurm
# cluster for a test).
# Exit status 2: packages are missing and this user may not install them.
set -euo pipefail

packages_of() {
  case $1 in
    build) echo ca-certificates cmake ninja-build g++ make pkg-config ccache \
      libabsl-dev libgrpc++-dev libprotobuf-dev protobuf-compiler \
      protobuf-compiler-grpc libssl-dev libre2-dev libc-ares-dev zlib1g-dev \
      libopenmpi-dev openmpi-bin nlohmann-json3-dev libpcre2-dev libcli11-dev \
      libdnnl-dev procps ;;
    test) echo libgtest-dev libgmock-dev libbenchmark-dev python3 \
      python3-numpy python3-jinja2 python3-grpcio python3-protobuf ;;
    sanitize) echo clang "$(clang_runtime)" ;;
    cross) echo g++-aarch64-linux-gnu ;;
    slurm) echo slurm-wlm munge iproute2 ;;
    *) echo "packages.sh: unknown group $1" >&2; return 1 ;;
  esac
}

# The package with clang's sanitizer runtimes carries clang's version.
clang_runtime() {
  local clang
  clang=$(apt-cache depends clang 2>/dev/null |
    sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p' | head -n 1)
  echo "libclang-rt-${clang:-14}-dev"
}

missing_of() {
  local group wanted installed
  wanted=$(for group in "$@"; do packages_of "$group"; done | xargs -n 1 | sort -u)
  # Packages that dpkg has never heard of make it fail. One of several
  # architectures is listed once for each.
  # shellcheck disable=SC2086
  installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted \
    2>/dev/null | sed -n 's/^installed //p' | sort -u || true)
  comm -23 <(echo "$wanted") <(echo "$installed")
}

# Whether sudo lets this user become root; at a terminal it may ask.
may_sudo() {
  command -v sudo >/dev/null || return 1
  sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }
}

install_missing() {
  local missing as_root=""
  missing=$(missing_of "$@" | paste -s -d ' ')
  [ -n "$missing" ] || return 0
  local apt="apt-get install -y --no-install-recommends"
  if [ "$(id -u)" -ne 0 ]; then
    if ! may_sudo; then
      echo "Packages are missing and this user may not install them. Run as root:" >&2
      echo "  apt-get update && $apt $missing" >&2
      return 2
    fi
    as_root=sudo
  fi
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
  # Only now is clang's version known where apt had no lists.
  missing=$(missing_of "$@" | paste -s -d ' ')
  echo "Installing: $missing"
  # The list is words, not one name.
  # shellcheck disable=SC2086
  $as_root env DEBIAN_FRONTEND=noninteractive $apt $missing -qq >/dev/null
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  install) install_missing "$@" ;;
  missing) missing_of "$@" ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 1 ;;
esac
