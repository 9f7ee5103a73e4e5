// The part of libvips that govips does not offer: directories of a TIFF, regions.
#ifndef COVERSLIP_VIPS_H
#define COVERSLIP_VIPS_H

#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <vips/vips.h>

// Each open returns a new reference, or NULL with vips' error buffer set.
VipsImage *cs_open_tiff(const char *path, int page, int sub);
VipsImage *cs_open_tiff_source(uintptr_t handle, int page, int sub);

// 8-bit RGB of any 8-bit image: orientation undone, grey spread, alpha laid on white.
VipsImage *cs_to_rgb(VipsImage *in);

// Decodes a region within the image into dst, w*h*3 bytes. 0 is success.
int cs_read_region(VipsImage *im, int x, int y, int w, int h, void *dst);

// Decodes a whole codestream of 3 8-bit components into dst, width*height*3 bytes. 0 is success.
int cs_decode_jp2k(const void *data, size_t size, int width, int height, void *dst);

// The caller frees what it gets with g_free.
void *cs_encode(const void *rgb, int width, int height, const char *suffix, size_t *size);
int cs_save_tiff(const void *rgb, int width, int height, double pixels_per_mm, const char *path);

void cs_limit_arenas(int n);

#endif
