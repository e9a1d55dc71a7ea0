# KR_KERNELS_ONLY: stands in for the foreign libraries. All folders of src/ are compiled, so that
# a source that does not build for the target is found; programs are linked from base, telemetry,
# tensor, ops and cpu only, whose tests run on a small stand-in for cmocka.
add_library(krt INTERFACE)
target_include_directories(krt INTERFACE ${CMAKE_SOURCE_DIR}/text)

# The header alone, out of the build machine's include folder (which must not be searched itself).
find_file(KR_XXHASH_HEADER xxhash.h PATHS /usr/include NO_DEFAULT_PATH REQUIRED
  NO_CMAKE_FIND_ROOT_PATH)
configure_file(${KR_XXHASH_HEADER} ${CMAKE_BINARY_DIR}/foreign/xxhash.h COPYONLY)
add_library(PkgConfig::XXHASH INTERFACE IMPORTED)
set_target_properties(PkgConfig::XXHASH PROPERTIES
  INTERFACE_INCLUDE_DIRECTORIES ${CMAKE_BINARY_DIR}/foreign)

add_library(kri_mini_cmocka STATIC tests/mini_cmocka/cmocka.c)
target_include_directories(kri_mini_cmocka SYSTEM PUBLIC ${CMAKE_SOURCE_DIR}/tests/mini_cmocka)
kri_warnings(kri_mini_cmocka)
add_library(PkgConfig::CMOCKA ALIAS kri_mini_cmocka)
