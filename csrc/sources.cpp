// A file of its own: its definition changes with every source, and nothing else needs compiling again for it.
#include "sources.h"

namespace ipvae {
const char* const sources = IPVAE_SOURCES;
}
