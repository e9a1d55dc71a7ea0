# The commit of the build, for kr_version(); asked again at each configure.
execute_process(COMMAND git -C ${CMAKE_SOURCE_DIR} rev-parse --short=12 HEAD
  OUTPUT_VARIABLE KR_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT KR_COMMIT)
  set(KR_COMMIT unknown)
endif()
target_compile_definitions(kri_api PRIVATE KR_COMMIT="${KR_COMMIT}")
