# Benchmarks: plain programs, not run by ctest. Build them without KR_ASSERTIONS and sanitizers.
function(kri_bench name)
  add_executable(${name} EXCLUDE_FROM_ALL bench/${name}.c)
  target_link_libraries(${name} PRIVATE ${ARGN})
  kri_warnings(${name})
endfunction()

kri_bench(bench_ops kri_cpu)
kri_bench(bench_stream Threads::Threads)
kri_bench(bench_threads kri_base)
target_sources(bench_stream PRIVATE app/cli/stream_bench.c)
