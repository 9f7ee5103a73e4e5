package hdf5

// #cgo pkg-config: hdf5
// #include <hdf5.h>
// #include <stdio.h>
// #include <stdlib.h>
// #include <string.h>
//
// typedef struct {
// 	int class, size, is_signed, exponent, fraction; // of an element; bits of a float
// 	int rank, layout, external, missing_filter;
// 	hsize_t dims[2], chunk[2], chunks, stored;
// } facts;
//
// // look returns 0 when all facts are there. Dimensions beyond the second are counted only.
// static int look(hid_t dataset, facts *f) {
// 	memset(f, 0, sizeof *f);
// 	hid_t type = H5Dget_type(dataset), space = H5Dget_space(dataset), plist = H5Dget_create_plist(dataset);
// 	int ok = type >= 0 && space >= 0 && plist >= 0;
// 	if (ok) {
// 		f->class = H5Tget_class(type);
// 		f->size = H5Tget_size(type);
// 		f->is_signed = f->class == H5T_INTEGER && H5Tget_sign(type) == H5T_SGN_2;
// 		if (f->class == H5T_FLOAT) {
// 			size_t sign, epos, esize, mpos, msize;
// 			ok = H5Tget_fields(type, &sign, &epos, &esize, &mpos, &msize) >= 0;
// 			f->exponent = esize;
// 			f->fraction = msize;
// 		}
// 		f->rank = H5Sget_simple_extent_type(space) == H5S_SIMPLE ? H5Sget_simple_extent_ndims(space) : 0;
// 		if (f->rank == 1 || f->rank == 2) ok = ok && H5Sget_simple_extent_dims(space, f->dims, NULL) == f->rank;
// 		f->layout = H5Pget_layout(plist);
// 		f->external = H5Pget_external_count(plist);
// 		f->stored = H5Dget_storage_size(dataset);
// 		if (f->layout == H5D_CHUNKED && (f->rank == 1 || f->rank == 2)) {
// 			ok = ok && H5Pget_chunk(plist, 2, f->chunk) == f->rank;
// 			if (ok && f->dims[0] > 0 && (f->rank == 1 || f->dims[1] > 0)) ok = H5Dget_num_chunks(dataset, space, &f->chunks) >= 0;
// 		}
// 		int filters = H5Pget_nfilters(plist);
// 		for (int i = 0; i < filters && !f->missing_filter; i++) {
// 			unsigned flags, config;
// 			size_t n = 0;
// 			H5Z_filter_t filter = H5Pget_filter2(plist, i, &flags, &n, NULL, 0, NULL, &config);
// 			if (H5Zfilter_avail(filter) <= 0) f->missing_filter = filter;
// 		}
// 	}
// 	if (plist >= 0) H5Pclose(plist);
// 	if (space >= 0) H5Sclose(space);
// 	if (type >= 0) H5Tclose(type);
// 	return ok ? 0 : -1;
// }
//
// // read_rows reads n rows from row from on, converted to the type of memory.
// static int read_rows(hid_t dataset, int rank, hsize_t from, hsize_t n, hsize_t width, hid_t memory, void *dst) {
// 	hsize_t start[2] = {from, 0}, count[2] = {n, width};
// 	hid_t file = H5Dget_space(dataset), mem = H5Screate_simple(rank, count, NULL);
// 	int err = file < 0 || mem < 0 || H5Sselect_hyperslab(file, H5S_SELECT_SET, start, NULL, count, NULL) < 0 ||
// 		H5Dread(dataset, memory, mem, file, H5P_DEFAULT, dst) < 0;
// 	if (mem >= 0) H5Sclose(mem);
// 	if (file >= 0) H5Sclose(file);
// 	return -err;
// }
//
// static int read_float32(hid_t d, int rank, hsize_t from, hsize_t n, hsize_t width, void *dst) {
// 	return read_rows(d, rank, from, n, width, H5T_NATIVE_FLOAT, dst);
// }
// static int read_float64(hid_t d, int rank, hsize_t from, hsize_t n, hsize_t width, void *dst) {
// 	return read_rows(d, rank, from, n, width, H5T_NATIVE_DOUBLE, dst);
// }
// static int read_int64(hid_t d, int rank, hsize_t from, hsize_t n, hsize_t width, void *dst) {
// 	return read_rows(d, rank, from, n, width, H5T_NATIVE_INT64, dst);
// }
//
// // link_kind: -1 nothing of this name, 0 a dataset, 1 something else in this file, 2 a link that leads on.
// static int link_kind(hid_t loc, const char *name) {
// 	if (H5Lexists(loc, name, H5P_DEFAULT) <= 0) return -1;
// 	H5L_info_t info;
// 	if (H5Lget_info(loc, name, &info, H5P_DEFAULT) < 0 || info.type != H5L_TYPE_HARD) return 2;
// 	hid_t object = H5Oopen(loc, name, H5P_DEFAULT);
// 	if (object < 0) return 1;
// 	int is = H5Iget_type(object) == H5I_DATASET;
// 	H5Oclose(object);
// 	return is ? 0 : 1;
// }
//
// typedef struct {
// 	int class;     // of the attribute; H5T_NO_CLASS: it could not be read
// 	long long number;
// 	double real;
// 	char *text;    // to be freed
// } value;
//
// enum { longest_text = 1 << 20 };
//
// // read_attribute returns 1 when there is none, 0 when v is filled in, -1 else.
// static int read_attribute(hid_t loc, const char *name, value *v) {
// 	memset(v, 0, sizeof *v);
// 	if (H5Aexists(loc, name) <= 0) return 1;
// 	hid_t attr = H5Aopen(loc, name, H5P_DEFAULT);
// 	if (attr < 0) return -1;
// 	hid_t type = H5Aget_type(attr), space = H5Aget_space(attr);
// 	int err = -1;
// 	if (type >= 0 && space >= 0 && H5Sget_simple_extent_npoints(space) == 1) {
// 		size_t size = H5Tget_size(type);
// 		v->class = H5Tget_class(type);
// 		if (v->class == H5T_INTEGER && size <= 8) {
// 			err = H5Aread(attr, H5T_NATIVE_LLONG, &v->number);
// 		} else if (v->class == H5T_FLOAT && size <= 8) {
// 			err = H5Aread(attr, H5T_NATIVE_DOUBLE, &v->real);
// 		} else if (v->class == H5T_STRING && H5Tis_variable_str(type) > 0) {
// 			char *text = NULL;
// 			hid_t mem = H5Tcopy(H5T_C_S1);
// 			H5Tset_size(mem, H5T_VARIABLE);
// 			H5Tset_cset(mem, H5Tget_cset(type));
// 			err = H5Aread(attr, mem, &text);
// 			if (err >= 0) v->text = strdup(text ? text : "");
// 			if (text) H5free_memory(text);
// 			H5Tclose(mem);
// 		} else if (v->class == H5T_STRING && size <= longest_text) {
// 			v->text = calloc(size + 1, 1);
// 			err = v->text ? H5Aread(attr, type, v->text) : -1;
// 			for (size_t i = size; H5Tget_strpad(type) == H5T_STR_SPACEPAD && i > 0 && v->text[i - 1] == ' '; i--) v->text[i - 1] = 0;
// 		}
// 	}
// 	if (space >= 0) H5Sclose(space);
// 	if (type >= 0) H5Tclose(type);
// 	H5Aclose(attr);
// 	return err < 0 ? -1 : 0;
// }
//
// static int write_attribute(hid_t loc, const char *name, hid_t type, hid_t space, const void *data) {
// 	int err = -1;
// 	hid_t attr = type >= 0 && space >= 0 ? H5Acreate2(loc, name, type, space, H5P_DEFAULT, H5P_DEFAULT) : -1;
// 	if (attr >= 0) {
// 		err = H5Awrite(attr, type, data) < 0 ? -1 : 0;
// 		H5Aclose(attr);
// 	}
// 	if (space >= 0) H5Sclose(space);
// 	return err;
// }
//
// // A text as h5py writes a str: one of variable length in UTF-8.
// static int write_text(hid_t loc, const char *name, const char *text) {
// 	hid_t type = H5Tcopy(H5T_C_S1);
// 	H5Tset_size(type, H5T_VARIABLE);
// 	H5Tset_cset(type, H5T_CSET_UTF8);
// 	int err = write_attribute(loc, name, type, H5Screate(H5S_SCALAR), &text);
// 	H5Tclose(type);
// 	return err;
// }
//
// // n of 0 is one number; else as many of them in a row.
// static hid_t row(hsize_t n) { return n ? H5Screate_simple(1, &n, NULL) : H5Screate(H5S_SCALAR); }
// static int write_ints(hid_t loc, const char *name, const void *data, hsize_t n) {
// 	return write_attribute(loc, name, H5T_NATIVE_INT64, row(n), data);
// }
// static int write_floats(hid_t loc, const char *name, const void *data, hsize_t n) {
// 	return write_attribute(loc, name, H5T_NATIVE_DOUBLE, row(n), data);
// }
//
// static herr_t first(unsigned n, const H5E_error2_t *e, void *into) {
// 	if (n == 0 && e->desc) snprintf(into, 256, "%s", e->desc);
// 	return 0;
// }
// static void why(char *into) {
// 	H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, first, into);
// 	H5Eclear2(H5E_DEFAULT);
// }
// static void quiet(void) { H5Eset_auto2(H5E_DEFAULT, NULL, NULL); }
// static void prepare(void) { H5PLset_loading_state(0); }
import "C"

import (
	"errors"
	"runtime"
	"sync"
	"unsafe"
)

// library is held during every call of the C library.
var library sync.Mutex

// No file has code loaded that it wants to be decompressed with.
func init() { C.prepare() }

// enter begins a call of the library; what it returns ends it. Where the library was built for threads,
// each of them has errors of its own, and prints them unless told not to.
func enter() (leave func()) {
	library.Lock()
	runtime.LockOSThread()
	C.quiet()
	return func() {
		runtime.UnlockOSThread()
		library.Unlock()
	}
}

// reason is what the library says of the call that failed just now.
func reason() error {
	var text [256]C.char
	C.why(&text[0])
	if s := C.GoString(&text[0]); s != "" {
		return errors.New(s)
	}
	return errors.New("the HDF5 library does not say why")
}

// Classes and layouts of facts.
const (
	classInteger = C.H5T_INTEGER
	classFloat   = C.H5T_FLOAT
	classText    = C.H5T_STRING
	contiguous   = C.H5D_CONTIGUOUS
	compact      = C.H5D_COMPACT
	chunked      = C.H5D_CHUNKED
)

type facts struct {
	class, size, exponent, fraction int
	signed                          bool
	rank, layout, external          int
	missingFilter                   int
	dims, chunk                     [2]uint64
	chunks, stored                  uint64
}

func look(dataset int64) (facts, error) {
	var f C.facts
	if C.look(C.hid_t(dataset), &f) != 0 {
		return facts{}, reason()
	}
	return facts{
		class: int(f.class), size: int(f.size), exponent: int(f.exponent), fraction: int(f.fraction), signed: f.is_signed != 0,
		rank: int(f.rank), layout: int(f.layout), external: int(f.external), missingFilter: int(f.missing_filter),
		dims: [2]uint64{uint64(f.dims[0]), uint64(f.dims[1])}, chunk: [2]uint64{uint64(f.chunk[0]), uint64(f.chunk[1])},
		chunks: uint64(f.chunks), stored: uint64(f.stored),
	}, nil
}

// readRows reads n rows of width values from row from on into dst.
func readRows[T float32 | float64 | int64](dataset int64, rank, from, n, width int, dst []T) error {
	d, r, a, b, w := C.hid_t(dataset), C.int(rank), C.hsize_t(from), C.hsize_t(n), C.hsize_t(width)
	var failed C.int
	switch p := any(dst).(type) {
	case []float32:
		failed = C.read_float32(d, r, a, b, w, unsafe.Pointer(&p[0]))
	case []float64:
		failed = C.read_float64(d, r, a, b, w, unsafe.Pointer(&p[0]))
	case []int64:
		failed = C.read_int64(d, r, a, b, w, unsafe.Pointer(&p[0]))
	}
	if failed != 0 {
		return reason()
	}
	return nil
}

// What linkKind says there is under a name.
const (
	linkNone    = -1
	linkDataset = 0
	linkAway    = 2
)

func linkKind(loc int64, name string) int {
	text := C.CString(name)
	defer C.free(unsafe.Pointer(text))
	return int(C.link_kind(C.hid_t(loc), text))
}

// value is an attribute; class says which field.
type value struct {
	class int
	int   int64
	real  float64
	text  string
}

// readAttribute says whether there is one of this name. It fails where it is not one text or number.
func readAttribute(loc int64, name string) (v value, there bool, err error) {
	text := C.CString(name)
	defer C.free(unsafe.Pointer(text))
	var raw C.value
	failed := C.read_attribute(C.hid_t(loc), text, &raw)
	if raw.text != nil {
		v.text = C.GoString(raw.text)
		C.free(unsafe.Pointer(raw.text))
	}
	if failed < 0 {
		return value{}, true, errors.New("it is neither one number nor one text")
	}
	v.class, v.int, v.real = int(raw.class), int64(raw.number), float64(raw.real)
	return v, failed == 0, nil
}

// writeAttribute writes a string, int64, float64, []int64 or []float64.
func writeAttribute(loc int64, name string, v any) error {
	n := C.CString(name)
	defer C.free(unsafe.Pointer(n))
	id := C.hid_t(loc)
	var failed C.int
	switch v := v.(type) {
	case string:
		text := C.CString(v)
		defer C.free(unsafe.Pointer(text))
		failed = C.write_text(id, n, text)
	case int64:
		failed = C.write_ints(id, n, unsafe.Pointer(&v), 0)
	case float64:
		failed = C.write_floats(id, n, unsafe.Pointer(&v), 0)
	case []int64:
		failed = C.write_ints(id, n, unsafe.Pointer(&v[0]), C.hsize_t(len(v)))
	case []float64:
		failed = C.write_floats(id, n, unsafe.Pointer(&v[0]), C.hsize_t(len(v)))
	default:
		panic("hdf5: an attribute of a type that is not written")
	}
	if failed != 0 {
		return reason()
	}
	return nil
}
