# SPDX-License-Identifier: Apache-2.0
#
# Makes PACKAGE beside its lib/: links to the files of SOURCE, and the EXTENSION of the build tree BINARY with the path of
# an installed one, by which it finds lib/.
file(GLOB entries RELATIVE ${SOURCE} ${SOURCE}/*)
foreach(entry IN LISTS entries)
  if(NOT entry MATCHES "^(lib|__pycache__|_C\\..*\\.so)$")
    file(CREATE_LINK ${SOURCE}/${entry} ${PACKAGE}/${entry} SYMBOLIC)
  endif()
endforeach()
file(COPY_FILE ${BINARY}/csrc/${EXTENSION} ${PACKAGE}/${EXTENSION})
file(COPY_FILE ${BINARY}/torch_version ${PACKAGE}/lib/torch_version)
