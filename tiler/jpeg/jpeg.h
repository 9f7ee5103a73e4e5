// Decodes JPEG streams that lie in memory. Nothing here calls back into Go, and no error of
// libjpeg's leaves the call it happened in.
#ifndef COVERSLIP_JPEG_H
#define COVERSLIP_JPEG_H

#include <stddef.h>

typedef struct cs_jpeg cs_jpeg;

enum { CS_JPEG_OK = 0, CS_JPEG_BAD = -1, CS_JPEG_NO_MEMORY = -2 };
enum { CS_JPEG_GREY, CS_JPEG_RGB, CS_JPEG_YCBCR };

// Keeps a copy of the tables. NULL when there is no memory.
cs_jpeg *cs_jpeg_new(const void *tables, size_t length);
void cs_jpeg_free(cs_jpeg *j);

// Reads the tables, so that the next decode finds them there.
int cs_jpeg_prime(cs_jpeg *j);

// Decodes the upper `rows` rows of a frame `width` pixels wide and from `rows` to `max_height` high
// into dst, each edge divided by `shrink` (1, 2, 4, 8) and rounded up, RGB.
int cs_jpeg_decode(cs_jpeg *j, const void *data, size_t length, void *dst, size_t stride, int colour, int width, int rows,
		int max_height, int shrink);

// Why the last call failed.
const char *cs_jpeg_message(const cs_jpeg *j);

const char *cs_jpeg_version(void);

#endif
