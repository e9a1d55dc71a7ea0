# The addon of the Node package: bindings/node/prebuilds/linux-x64/napi.node, self-contained but for
# the system's libraries. Its headers are the npm package node-api-headers, a development dependency
# of bindings/node (`npm ci` there); napi_* are Node's own and stay open.
#
# kri_host: what of it knows nothing of Node, for the addon and its test.
add_library(kri_host STATIC bindings/node/addon/host.c
  app/cli/options.c app/cli/load.c app/cli/models.c app/cli/server_setup.c app/cli/runtime.c)
target_include_directories(kri_host PUBLIC bindings/node/addon include src app)
target_link_libraries(kri_host PUBLIC kri_rpc PkgConfig::JANSSON PkgConfig::CRYPTO)
kri_warnings(kri_host)
if(KR_TESTS)
  file(GLOB tests CONFIGURE_DEPENDS tests/unit/node/test_*.c)
  foreach(test ${tests})
    kri_test(${test} kri_host)
  endforeach()
endif()

set(KR_NODE_HEADERS ${CMAKE_SOURCE_DIR}/bindings/node/node_modules/node-api-headers/include
  CACHE PATH "folder of node_api.h")
if(NOT EXISTS ${KR_NODE_HEADERS}/node_api.h)
  message(STATUS "kr_node: skipped, no ${KR_NODE_HEADERS}/node_api.h (npm ci in bindings/node)")
elseif(KR_SANITIZE)
  message(STATUS "kr_node: skipped with sanitizers, whose runtime node does not have")
else()
  file(GLOB sources CONFIGURE_DEPENDS bindings/node/addon/*.c)
  list(FILTER sources EXCLUDE REGEX "/host\\.c$")
  add_library(kr_node MODULE ${sources})
  target_include_directories(kr_node SYSTEM PRIVATE ${KR_NODE_HEADERS})
  target_link_libraries(kr_node PRIVATE kri_host)
  # Only the module's entry is seen; its threads may outlive a dlclose at the end of a worker.
  target_link_options(kr_node PRIVATE -Wl,--exclude-libs,ALL -Wl,-z,nodelete -Wl,-z,relro,-z,now)
  # Only the release is what the package takes; other presets see whether it compiles.
  set(folder ${CMAKE_BINARY_DIR}/node)
  if(CMAKE_BUILD_TYPE STREQUAL "Release")
    set(folder ${CMAKE_SOURCE_DIR}/bindings/node/prebuilds/linux-x64)
  endif()
  set_target_properties(kr_node PROPERTIES PREFIX "" OUTPUT_NAME napi SUFFIX ".node"
    LIBRARY_OUTPUT_DIRECTORY ${folder})
  kri_warnings(kr_node)
endif()
