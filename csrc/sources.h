#pragma once

namespace ipvae {
extern const char* const sources;  // the digest of the C++ sources that were compiled (CMakeLists.txt)
}
