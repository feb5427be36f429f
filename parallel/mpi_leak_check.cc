// What LeakSanitizer needs to tell this program's leaks from Open MPI's. Part
// of every program with MPI in builds with AddressSanitizer, of no other.

// Open MPI unloads plug-ins whose memory it never gives back, and what lay in
// them has no name any more. Here they stay.
extern "C" int dlclose(void*) { return 0; }

// Libraries in whose memory nobody here has a part, and what they call and this
// project does not: frames above it are lost.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:/openmpi/\n"
         "leak:libopen-pal\n"
         "leak:libopen-rte\n"
         "leak:libmpi.so\n"
         "leak:libpmix\n"
         "leak:libhwloc\n"
         "leak:libevent\n"
         "leak:mca_\n"
         "leak:vasprintf\n";
}
