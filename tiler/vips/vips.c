#include "vips.h"

#include <string.h>

#include "_cgo_export.h"

VipsImage *cs_open_tiff(const char *path, int page, int sub) {
	VipsImage *out = NULL;
	if (vips_tiffload(path, &out, "page", page, "subifd", sub, "access", VIPS_ACCESS_RANDOM, "fail_on",
			VIPS_FAIL_ON_WARNING, NULL))
		return NULL;
	return out;
}

static gint64 read_source(VipsSourceCustom *source, void *buffer, gint64 n, void *handle) {
	return goRead((uintptr_t)handle, buffer, n);
}

static gint64 seek_source(VipsSourceCustom *source, gint64 offset, int whence, void *handle) {
	return goSeek((uintptr_t)handle, offset, whence);
}

VipsImage *cs_open_tiff_source(uintptr_t handle, int page, int sub) {
	VipsSourceCustom *source = vips_source_custom_new();
	g_signal_connect(source, "read", G_CALLBACK(read_source), (void *)handle);
	g_signal_connect(source, "seek", G_CALLBACK(seek_source), (void *)handle);
	VipsImage *out = NULL;
	if (vips_tiffload_source(VIPS_SOURCE(source), &out, "page", page, "subifd", sub, "access", VIPS_ACCESS_RANDOM,
			"fail_on", VIPS_FAIL_ON_WARNING, NULL))
		out = NULL;
	g_object_unref(source);
	return out;
}

VipsImage *cs_to_rgb(VipsImage *in) {
	VipsImage *turned = NULL, *flat = NULL, *out = NULL;
	if (vips_autorot(in, &turned, NULL))
		return NULL;
	if (vips_image_hasalpha(turned)) {
		VipsArrayDouble *white = vips_array_double_newv(1, 255.0);
		int failed = vips_flatten(turned, &flat, "background", white, NULL);
		vips_area_unref(VIPS_AREA(white));
		g_object_unref(turned);
		if (failed)
			return NULL;
	} else
		flat = turned;
	switch (vips_image_get_bands(flat)) {
	case 3:
		if (vips_image_guess_interpretation(flat) == VIPS_INTERPRETATION_CMYK ||
				vips_image_guess_interpretation(flat) == VIPS_INTERPRETATION_LAB) {
			vips_error("coverslip", "three samples a pixel, but not RGB");
			break;
		}
		out = flat;
		g_object_ref(out);
		break;
	case 1: {
		VipsImage *grey[3] = { flat, flat, flat };
		if (vips_bandjoin(grey, &out, 3, NULL))
			out = NULL;
		break;
	}
	default:
		vips_error("coverslip", "%d samples a pixel", vips_image_get_bands(flat));
	}
	g_object_unref(flat);
	return out;
}

// A region belongs to the thread that makes it, so it lives within one call.
int cs_read_region(VipsImage *im, int x, int y, int w, int h, void *dst) {
	VipsRegion *region = vips_region_new(im);
	if (!region)
		return -1;
	VipsRect want = { x, y, w, h };
	int failed = vips_region_prepare(region, &want);
	if (!failed)
		for (int row = 0; row < h; row++)
			memcpy((char *)dst + (size_t)row * w * 3, VIPS_REGION_ADDR(region, x, y + row), (size_t)w * 3);
	g_object_unref(region);
	return failed;
}

int cs_decode_jp2k(const void *data, size_t size, int width, int height, void *dst) {
	VipsImage *im = NULL;
	if (vips_jp2kload_buffer((void *)data, size, &im, "fail_on", VIPS_FAIL_ON_WARNING, NULL))
		return -1;
	int failed = -1;
	if (im->Xsize != width || im->Ysize != height || im->Bands != 3 || im->BandFmt != VIPS_FORMAT_UCHAR)
		vips_error("coverslip", "a tile of %d x %d with %d samples, not %d x %d with 3 of 8 bits", im->Xsize, im->Ysize,
				im->Bands, width, height);
	else
		failed = cs_read_region(im, 0, 0, width, height, dst);
	g_object_unref(im);
	return failed;
}

void *cs_encode(const void *rgb, int width, int height, const char *suffix, size_t *size) {
	void *out = NULL;
	VipsImage *im = vips_image_new_from_memory(rgb, (size_t)width * height * 3, width, height, 3, VIPS_FORMAT_UCHAR);
	if (!im)
		return NULL;
	im->Type = VIPS_INTERPRETATION_sRGB;
	if (vips_image_write_to_buffer(im, suffix, &out, size, NULL))
		out = NULL;
	g_object_unref(im);
	return out;
}

int cs_save_tiff(const void *rgb, int width, int height, double pixels_per_mm, const char *path) {
	VipsImage *im = vips_image_new_from_memory(rgb, (size_t)width * height * 3, width, height, 3, VIPS_FORMAT_UCHAR);
	if (!im)
		return -1;
	im->Type = VIPS_INTERPRETATION_sRGB;
	int failed = vips_tiffsave(im, path, "tile", TRUE, "tile_width", 256, "tile_height", 256, "pyramid", TRUE,
			"compression", VIPS_FOREIGN_TIFF_COMPRESSION_JPEG, "Q", 75, "resunit", VIPS_FOREIGN_TIFF_RESUNIT_CM,
			"xres", pixels_per_mm, "yres", pixels_per_mm, NULL);
	g_object_unref(im);
	return failed;
}

void cs_limit_arenas(int n) { mallopt(M_ARENA_MAX, n); }
