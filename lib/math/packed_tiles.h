/* The tiles of one way to multiply, and the smallest one for each remainder: packed_avx512.c and packed_bf16.c include this file
 * with WAY_NAME set, and with FACTORS, FACTOR and ADD_PRODUCT of packed_tile.h; all are undefined here. */
#define TILE_NAMED_(way, size) way##_##size
#define TILE_NAMED(way, size) TILE_NAMED_(way, size)

#define TILE_NAME TILE_NAMED(WAY_NAME, 8x32)
#define TILE_ROWS 8
#define TILE_WIDE 1
#define TILE_STREAM 0
#include "math/packed_tile.h"
#define TILE_NAME TILE_NAMED(WAY_NAME, 4x32)
#define TILE_ROWS 4
#define TILE_WIDE 1
#define TILE_STREAM 0
#include "math/packed_tile.h"
#define TILE_NAME TILE_NAMED(WAY_NAME, 2x32)
#define TILE_ROWS 2
#define TILE_WIDE 1
#define TILE_STREAM 0
#include "math/packed_tile.h"
#define TILE_NAME TILE_NAMED(WAY_NAME, 8x16)
#define TILE_ROWS 8
#define TILE_WIDE 0
#define TILE_STREAM 0
#include "math/packed_tile.h"
#define TILE_NAME TILE_NAMED(WAY_NAME, 4x16)
#define TILE_ROWS 4
#define TILE_WIDE 0
#define TILE_STREAM 0
#include "math/packed_tile.h"
#define TILE_NAME TILE_NAMED(WAY_NAME, 2x16)
#define TILE_ROWS 2
#define TILE_WIDE 0
#define TILE_STREAM 0
#include "math/packed_tile.h"
#define TILE_NAME TILE_NAMED(WAY_NAME, 8x32_stream)
#define TILE_ROWS 8
#define TILE_WIDE 1
#define TILE_STREAM 1
#include "math/packed_tile.h"
#define TILE_NAME TILE_NAMED(WAY_NAME, 4x32_stream)
#define TILE_ROWS 4
#define TILE_WIDE 1
#define TILE_STREAM 1
#include "math/packed_tile.h"
#define TILE_NAME TILE_NAMED(WAY_NAME, 2x32_stream)
#define TILE_ROWS 2
#define TILE_WIDE 1
#define TILE_STREAM 1
#include "math/packed_tile.h"
#define TILE_NAME TILE_NAMED(WAY_NAME, 8x16_stream)
#define TILE_ROWS 8
#define TILE_WIDE 0
#define TILE_STREAM 1
#include "math/packed_tile.h"
#define TILE_NAME TILE_NAMED(WAY_NAME, 4x16_stream)
#define TILE_ROWS 4
#define TILE_WIDE 0
#define TILE_STREAM 1
#include "math/packed_tile.h"
#define TILE_NAME TILE_NAMED(WAY_NAME, 2x16_stream)
#define TILE_ROWS 2
#define TILE_WIDE 0
#define TILE_STREAM 1
#include "math/packed_tile.h"

/* [more than 16 columns][up to 2, 4, 8 rows] */
static tile_function *const TILE_NAMED(WAY_NAME, tiles)[2][3] = {
    {TILE_NAMED(WAY_NAME, 2x16), TILE_NAMED(WAY_NAME, 4x16), TILE_NAMED(WAY_NAME, 8x16)},
    {TILE_NAMED(WAY_NAME, 2x32), TILE_NAMED(WAY_NAME, 4x32), TILE_NAMED(WAY_NAME, 8x32)}};
static stream_function *const TILE_NAMED(WAY_NAME, streams)[2][3] = {
    {TILE_NAMED(WAY_NAME, 2x16_stream), TILE_NAMED(WAY_NAME, 4x16_stream), TILE_NAMED(WAY_NAME, 8x16_stream)},
    {TILE_NAMED(WAY_NAME, 2x32_stream), TILE_NAMED(WAY_NAME, 4x32_stream), TILE_NAMED(WAY_NAME, 8x32_stream)}};

#undef WAY_NAME
#undef FACTORS
#undef FACTOR
#undef ADD_PRODUCT
#undef TILE_NAMED
#undef TILE_NAMED_
