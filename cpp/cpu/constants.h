// The sizes that `vlkv tune` may choose anew for a processor and a model, by flags such as
// -DVLKV_ATTEND_KEYS=128. Their ranges are in python/vlkv/tune/operators/constants.py.
#pragma once

#ifndef VLKV_SCORE_TILE_KEYS
#define VLKV_SCORE_TILE_KEYS 96
#endif
#ifndef VLKV_SCORE_MOST_ROWS
#define VLKV_SCORE_MOST_ROWS 64
#endif
#ifndef VLKV_ATTEND_KEYS
#define VLKV_ATTEND_KEYS 64
#endif
#ifndef VLKV_ATTEND_AHEAD
#define VLKV_ATTEND_AHEAD 12288
#endif
#ifndef VLKV_ATTEND_PART_SLOTS
#define VLKV_ATTEND_PART_SLOTS 1024
#endif
#ifndef VLKV_ATTEND_BLOCK_QUERIES
#define VLKV_ATTEND_BLOCK_QUERIES 192
#endif
#ifndef VLKV_ATTEND_BLOCK_KEYS
#define VLKV_ATTEND_BLOCK_KEYS 96
#endif
#ifndef VLKV_LINEAR_AHEAD
#define VLKV_LINEAR_AHEAD 8192
#endif
#ifndef VLKV_LINEAR_PART_KIB
#define VLKV_LINEAR_PART_KIB 32
#endif
#ifndef VLKV_LINEAR_FEW_COLUMNS
#define VLKV_LINEAR_FEW_COLUMNS 24
#endif
#ifndef VLKV_LINEAR_COLUMNS_AT_ONCE
#define VLKV_LINEAR_COLUMNS_AT_ONCE 8
#endif
#ifndef VLKV_LINEAR_ROW_COLUMNS_AT_ONCE
#define VLKV_LINEAR_ROW_COLUMNS_AT_ONCE 1
#endif
#ifndef VLKV_EVICT_PIECE
#define VLKV_EVICT_PIECE 256
#endif
#ifndef VLKV_EVICT_AHEAD
#define VLKV_EVICT_AHEAD 8
#endif
