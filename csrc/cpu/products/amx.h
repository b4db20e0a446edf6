// AMX tiles: eight registers of 16 rows of 64 bytes.
#pragma once

#include "../rows.h"

IPVAE_BEGIN

constexpr int kTileRows = 32;  // rows of a product: two tiles share each tile of B
// Neurons are one block here, for any number of them, and so threads share rows alone.
constexpr int kTeamRows = kTileRows, kWideRows = kTileRows;
constexpr int64_t kNeuronBlock = int64_t{1} << 40;
constexpr bool kReadsDictionary = false;
// From so many bytes on a dictionary is not packed in digits but read by the next instruction set: the copies would take twice
// its memory, and few rows are bound by memory either way.
constexpr int64_t kPackedBytes = int64_t{1} << 26;
constexpr bool kMergesSlots = false;

// The tile intrinsics of GCC 12 do not tell the compiler what memory they read.
IPVAE_HD void finish_stores() { asm volatile("" ::: "memory"); }

// While an object of this class lives all tiles of the thread are of 16 rows of 64 bytes: fewer rows take as long.
class TileScope {
  public:
    TileScope() {
        struct {
            uint8_t palette, start_row, reserved[14];
            uint16_t row_bytes[16];
            uint8_t rows[16];
        } config = {};
        config.palette = 1;
        for (int i = 0; i < 8; ++i) {
            config.row_bytes[i] = 64;
            config.rows[i] = 16;
        }
        asm volatile("" : : "r"(&config) : "memory");
        _tile_loadconfig(&config);
    }
    TileScope(const TileScope&) = delete;
    ~TileScope() { _tile_release(); }
};

IPVAE_END
