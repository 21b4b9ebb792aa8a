/* Before every other header of the fuzzed copy of reader.pyx: its close() asks pact_fuzz_close(). */
#define close pact_fuzz_close
