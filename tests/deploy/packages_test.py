"""deploy/packages.sh on machines that the programs in PATH make up."""

import os
import pty
import stat
import subprocess
import tempfile
import unittest

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                      "../../deploy/packages.sh")

# sudo: "rights" runs the command; without them it fails with its own code, as
# it does after three wrong passwords. apt-cache knows clang once the lists are
# there. Every call of apt-get is noted.
PROGRAMS = {
    "id": "echo $FAKE_ID",
    "dpkg-query": 'for name in $FAKE_INSTALLED; do echo "installed $name"; done',
    "apt-cache": '[ -e "$FAKE_DIR/lists" ] && echo "  Depends: clang-18"',
    "apt-get": 'echo "apt-get $*" >>"$FAKE_DIR/calls"\n'
               'if [ "$1" = update ]; then touch "$FAKE_DIR/lists"; fi',
    "sudo": '[ "$FAKE_SUDO" = rights ] || exit 77\n'
            'while [ "${1#-}" != "$1" ]; do shift; done\n'
            'exec "$@"',
}


class PackagesTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        for name, text in PROGRAMS.items():
            path = os.path.join(self.folder, name)
            with open(path, "w", encoding="utf-8") as file:
                file.write(f"#!/bin/sh\n{text}\n")
            os.chmod(path, stat.S_IRWXU)

    def packages(self, *command, user=0, sudo="rights", installed="",
                 stdin=subprocess.DEVNULL):
        return subprocess.run(
            [SCRIPT, *command], check=False, text=True, capture_output=True,
            stdin=stdin,
            env={**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}",
                 "FAKE_DIR": self.folder, "FAKE_ID": str(user),
                 "FAKE_SUDO": sudo, "FAKE_INSTALLED": installed})

    def calls(self):
        try:
            with open(os.path.join(self.folder, "calls"),
                      encoding="utf-8") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def test_clang_runtime_has_the_version_of_fresh_lists(self):
        result = self.packages("install", "sanitize")
        self.assertEqual(result.returncode, 0, result.stderr)
        update, install = self.calls()
        self.assertEqual(update, "apt-get update -qq")
        self.assertIn(" clang libclang-rt-18-dev ", install)
        self.assertIn("libclang-rt-18-dev", result.stdout)

    def test_nothing_is_asked_of_apt_when_nothing_is_missing(self):
        for user in (0, 1000):
            result = self.packages("install", "cross", user=user,
                                   installed="g++-aarch64-linux-gnu")
            self.assertEqual((result.returncode, result.stdout), (0, ""))
        self.assertEqual(self.calls(), [])

    def test_missing_prints_names(self):
        result = self.packages("missing", "sanitize", installed="clang")
        self.assertEqual(result.stdout, "libclang-rt-14-dev\n")

    def test_user_with_sudo_installs(self):
        result = self.packages("install", "cross", user=1000)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("g++-aarch64-linux-gnu", self.calls()[1])

    def test_user_without_rights_gets_the_line_for_root(self):
        main, terminal = pty.openpty()
        self.addCleanup(os.close, main)
        self.addCleanup(os.close, terminal)
        for stdin in (subprocess.DEVNULL, terminal):
            with self.subTest(terminal=stdin == terminal):
                result = self.packages("install", "cross", user=1000,
                                       sudo="none", stdin=stdin)
                self.assertEqual(result.returncode, 2)
                self.assertIn("apt-get update && apt-get install -y "
                              "--no-install-recommends g++-aarch64-linux-gnu",
                              result.stderr)
        self.assertEqual(self.calls(), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
