# The commit of the build, for kr_version(). A moved HEAD configures anew, so that figures never
# carry the name of another commit.
if(EXISTS ${CMAKE_SOURCE_DIR}/.git/logs/HEAD)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
    ${CMAKE_SOURCE_DIR}/.git/logs/HEAD)
endif()
execute_process(COMMAND git -C ${CMAKE_SOURCE_DIR} rev-parse --short=12 HEAD
  OUTPUT_VARIABLE KR_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT KR_COMMIT)
  set(KR_COMMIT unknown)
endif()
target_compile_definitions(kri_api PRIVATE KR_COMMIT="${KR_COMMIT}")
