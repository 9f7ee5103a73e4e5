#include "jpeg.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// jpeglib.h needs FILE and size_t to be known.
#include <jerror.h>
#include <jpeglib.h>

// A progressive picture has about ten scans. Each one more costs a pass over all coefficients and
// takes few bytes, so they are bounded, as in libtiff.
enum { MAX_SCANS = 100 };

struct cs_jpeg {
	struct jpeg_decompress_struct d;
	struct jpeg_error_mgr errors;
	struct jpeg_progress_mgr progress;
	jmp_buf back;
	int primed;     // d holds the tables, and no others
	int own_tables; // the stream brought some itself
	unsigned char *tables;
	size_t tables_length;
	char message[JMSG_LENGTH_MAX];
};

static void leave(j_common_ptr c) {
	cs_jpeg *j = c->client_data;
	c->err->format_message(c, j->message);
	longjmp(j->back, c->err->msg_code == JERR_OUT_OF_MEMORY ? CS_JPEG_NO_MEMORY : CS_JPEG_BAD);
}

static void refuse(cs_jpeg *j, const char *format, ...) {
	va_list args;
	va_start(args, format);
	vsnprintf(j->message, sizeof j->message, format, args);
	va_end(args);
	longjmp(j->back, CS_JPEG_BAD);
}

// Every message of libjpeg's comes by here. After a warning it would go on with pixels of its own
// making, so the first one ends the decoding.
static void message(j_common_ptr c, int level) {
	if (level < 0) {
		c->err->num_warnings++;
		leave(c);
	}
	if (c->err->msg_code == JTRC_DHT || c->err->msg_code == JTRC_DQT)
		((cs_jpeg *)c->client_data)->own_tables = 1;
}

static void silent(j_common_ptr c) { (void)c; }

static void count_scans(j_common_ptr c) {
	if (((j_decompress_ptr)c)->input_scan_number > MAX_SCANS)
		refuse(c->client_data, "more than %d scans", MAX_SCANS);
}

cs_jpeg *cs_jpeg_new(const void *tables, size_t length) {
	cs_jpeg *j = calloc(1, sizeof *j);
	if (!j || !(j->tables = malloc(length + 1))) {
		free(j);
		return NULL;
	}
	if (length)
		memcpy(j->tables, tables, length);
	j->tables_length = length;
	j->d.err = jpeg_std_error(&j->errors);
	j->d.client_data = j;
	j->errors.error_exit = leave;
	j->errors.emit_message = message;
	j->errors.output_message = silent;
	j->progress.progress_monitor = count_scans;
	return j;
}

void cs_jpeg_free(cs_jpeg *j) {
	jpeg_destroy_decompress(&j->d);
	free(j->tables);
	free(j);
}

// A new context each time: tables that another stream brought must not linger.
static void prime(cs_jpeg *j) {
	jpeg_destroy_decompress(&j->d);
	j->d.src = NULL;
	jpeg_create_decompress(&j->d);
	if (j->tables_length) {
		jpeg_mem_src(&j->d, j->tables, j->tables_length);
		if (jpeg_read_header(&j->d, FALSE) != JPEG_HEADER_TABLES_ONLY)
			refuse(j, "a picture stands where only tables should");
	}
	j->primed = 1;
}

// Forgets the caller's bytes, which may move or go once the call returns.
static int done(cs_jpeg *j, int result) {
	if (j->d.src) {
		j->d.src->next_input_byte = NULL;
		j->d.src->bytes_in_buffer = 0;
	}
	return result;
}

int cs_jpeg_prime(cs_jpeg *j) {
	int failed = setjmp(j->back);
	if (failed)
		return done(j, failed);
	prime(j);
	return done(j, CS_JPEG_OK);
}

int cs_jpeg_decode(cs_jpeg *j, const void *data, size_t length, void *dst, size_t stride, int colour, int width, int rows,
		int max_height, int shrink) {
	j_decompress_ptr d = &j->d;
	int failed = setjmp(j->back);
	if (failed)
		return done(j, failed);
	if (!j->primed)
		prime(j);
	j->primed = j->own_tables = 0; // until the stream is through
	j->errors.num_warnings = 0;

	jpeg_mem_src(d, data, length);
	jpeg_read_header(d, TRUE);
	if (d->image_width != (JDIMENSION)width || d->image_height < (JDIMENSION)rows || d->image_height > (JDIMENSION)max_height)
		refuse(j, "a picture of %u x %u pixels in a place for %d x %d", d->image_width, d->image_height, width, rows);
	if (d->num_components != (colour == CS_JPEG_GREY ? 1 : 3))
		refuse(j, "a picture of %d components where %d should be", d->num_components, colour == CS_JPEG_GREY ? 1 : 3);

	d->jpeg_color_space = colour == CS_JPEG_GREY ? JCS_GRAYSCALE : colour == CS_JPEG_RGB ? JCS_RGB : JCS_YCbCr;
	d->out_color_space = JCS_RGB;
	d->scale_num = 1;
	d->scale_denom = shrink;
	d->dct_method = JDCT_ISLOW; // exact: the same pixels on every machine
	d->do_fancy_upsampling = TRUE;
	d->progress = jpeg_has_multiple_scans(d) ? &j->progress : NULL;
	jpeg_calc_output_dimensions(d);
	JDIMENSION lines = (rows + shrink - 1) / shrink;
	if (d->output_width != (JDIMENSION)(width + shrink - 1) / shrink || d->output_height < lines || d->output_components != 3)
		refuse(j, "libjpeg would write %u x %u pixels of %d bytes", d->output_width, d->output_height, d->output_components);

	jpeg_start_decompress(d);
	while (d->output_scanline < lines) {
		JSAMPROW next[8];
		JDIMENSION n = 0;
		for (JDIMENSION at = d->output_scanline; n < 8 && at < lines; at++)
			next[n++] = (JSAMPROW)dst + at * stride;
		jpeg_read_scanlines(d, next, n);
	}
	if (d->output_scanline < d->output_height)
		jpeg_abort_decompress(d);
	else
		jpeg_finish_decompress(d); // reads to the end, so that one cut short shows
	j->primed = !j->own_tables;
	return done(j, CS_JPEG_OK);
}

const char *cs_jpeg_message(const cs_jpeg *j) { return j->message; }

#define TEXT(x) #x
#define TEXT_OF(x) TEXT(x)
const char *cs_jpeg_version(void) { return TEXT_OF(LIBJPEG_TURBO_VERSION); }
