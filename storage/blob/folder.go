package blob

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"coverslip"
)

// unfinished is the folder, inside the store's, that holds blobs being written: on the same file
// system, so that renaming one publishes it. CheckKey keeps keys out of it.
const unfinished = ".unfinished"

// Folder keeps each blob as the file of that name under one folder.
type Folder struct {
	Watched
	dir  string   // absolute
	root *os.Root // keeps every access inside dir, symbolic links or not
}

// OpenFolder opens the folder dir as a store, makes it if it is missing, and removes what writers
// that died more than a day ago left behind.
func OpenFolder(dir string) (*Folder, error) {
	const op = "open blob folder"
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, folderError(op, dir, err)
	}
	if err := os.MkdirAll(filepath.Join(abs, unfinished), 0o750); err != nil {
		return nil, folderError(op, abs, inTheWay(err))
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, folderError(op, abs, err)
	}
	f := &Folder{dir: abs, root: root}
	if err := f.Sweep(context.Background(), time.Now().Add(-leftoverAge)); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return f, nil
}

// Path is the file that holds a blob, for libraries that want a path. It need not exist.
func (f *Folder) Path(key string) (string, error) {
	if err := CheckKey(key); err != nil {
		return "", err
	}
	return f.path(key), nil
}

func (f *Folder) path(key string) string { return filepath.Join(f.dir, filepath.FromSlash(key)) }

// Put implements Store.
func (f *Folder) Put(ctx context.Context, key string, src io.Reader, size int64) (err error) {
	defer f.took("put", time.Now(), &err)
	const op = "write blob"
	if err := CheckKey(key); err != nil {
		return err
	}
	temp := path.Join(unfinished, rand.Text())
	in := &source{ctx: ctx, src: src, size: size}
	err = f.write(temp, in)
	if err == nil {
		err = f.publish(temp, key)
	}
	switch {
	case err == nil:
		return nil
	case in.err != nil:
		err = in.err
	}
	// Should this fail too, a later sweep does it.
	_ = f.root.Remove(temp)
	return folderError(op, f.path(key), err)
}

// Create is PutFile of a blob that is not there yet: of several writers the first one wins, and for the others
// it is a Conflict.
func (f *Folder) Create(ctx context.Context, key string, file *os.File, size int64) (err error) {
	const op = "create blob"
	defer f.took("put", time.Now(), &err)
	if err := CheckKey(key); err != nil {
		return err
	}
	temp := path.Join(unfinished, rand.Text())
	defer f.root.Remove(temp) //nolint:errcheck // should this fail, a later sweep does it
	in := &source{ctx: ctx, src: io.NewSectionReader(file, 0, size), size: size}
	if err = f.write(temp, in); err == nil {
		err = f.link(temp, key)
	}
	if in.err != nil {
		err = in.err
	}
	if err != nil {
		return folderError(op, f.path(key), err)
	}
	return nil
}

// Copy gives a blob's content a second key, as Put would.
func (f *Folder) Copy(ctx context.Context, from, to string) error {
	src, err := f.Open(ctx, from)
	if err != nil {
		return err
	}
	defer src.Close()
	return f.Put(ctx, to, io.NewSectionReader(src, 0, src.Size()), src.Size())
}

// write fills a new file and makes its content durable.
func (f *Folder) write(name string, src io.Reader) error {
	file, err := f.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, src)
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// PutFile is Put of the first size bytes of a file, which must not change afterwards: on the same disk it
// takes the file itself, under a second name.
func (f *Folder) PutFile(ctx context.Context, key string, file *os.File, size int64) (err error) {
	const op = "write blob"
	if err := CheckKey(key); err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return folderError(op, f.path(key), err)
	}
	temp := path.Join(unfinished, rand.Text())
	if info.Size() != size || os.Link(file.Name(), f.path(temp)) != nil { // another disk, or one that knows no links
		return f.Put(ctx, key, io.NewSectionReader(file, 0, size), size)
	}
	defer f.took("put", time.Now(), &err)
	if err = file.Sync(); err == nil {
		err = f.publish(temp, key)
	}
	if err != nil {
		_ = f.root.Remove(temp) // should this fail too, a later sweep does it
		return folderError(op, f.path(key), err)
	}
	return nil
}

// publish moves a finished file to its key and makes the new name durable, together with the
// folders made for it.
func (f *Folder) publish(temp, key string) error {
	return f.name(key, func() error { return f.root.Rename(temp, key) })
}

// link is publish where nothing has the key; the temporary name stays.
func (f *Folder) link(temp, key string) error {
	return f.name(key, func() error {
		err := f.root.Link(temp, key)
		if errors.Is(err, fs.ErrExist) {
			return &coverslip.Error{Kind: coverslip.Conflict, Op: "create blob", Err: errors.New("it is there already"), Hint: "read it, or replace it"}
		}
		return err
	})
}

func (f *Folder) name(key string, do func() error) error {
	err := f.root.MkdirAll(path.Dir(key), 0o750)
	if err == nil {
		err = do()
	}
	if err != nil {
		return inTheWay(err)
	}
	for dir := path.Dir(key); ; dir = path.Dir(dir) {
		if err := f.sync(dir); err != nil {
			return err
		}
		if dir == "." {
			return nil
		}
	}
}

func (f *Folder) sync(dir string) error {
	d, err := f.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Open implements Store. A blob that is replaced or deleted keeps its content for those who have it
// open.
func (f *Folder) Open(ctx context.Context, key string) (_ Blob, err error) {
	defer f.took("open", time.Now(), &err)
	const op = "open blob"
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, folderError(op, f.path(key), err)
	}
	file, err := f.root.Open(key)
	if err != nil {
		return nil, folderError(op, f.path(key), err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, errors.Join(folderError(op, f.path(key), err), file.Close())
	}
	return &folderBlob{store: f, ctx: ctx, file: file, size: info.Size(), path: f.path(key)}, nil
}

type folderBlob struct {
	store *Folder
	ctx   context.Context // of Open: the blob's life
	file  *os.File
	size  int64
	path  string
}

func (b *folderBlob) Size() int64  { return b.size }
func (b *folderBlob) Close() error { return b.file.Close() }

func (b *folderBlob) ReadAt(p []byte, off int64) (n int, err error) {
	defer b.store.took("read", time.Now(), &err)
	if err = b.ctx.Err(); err == nil {
		n, err = b.file.ReadAt(p, off)
	}
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	return n, folderError("read blob", b.path, err)
}

// Stat implements Store.
func (f *Folder) Stat(ctx context.Context, key string) (_ Info, err error) {
	defer f.took("stat", time.Now(), &err)
	if err := CheckKey(key); err != nil {
		return Info{}, err
	}
	if err = ctx.Err(); err == nil {
		var info fs.FileInfo
		if info, err = f.root.Stat(key); err == nil {
			if info.Mode().IsRegular() {
				return Info{Key: key, Size: info.Size(), Modified: info.ModTime()}, nil
			}
			err = fs.ErrNotExist
		}
	}
	return Info{}, folderError("look at blob", f.path(key), err)
}

// Delete implements Store. Folders that become empty stay: removing them would race with writers.
func (f *Folder) Delete(ctx context.Context, key string) (err error) {
	defer f.took("delete", time.Now(), &err)
	_, err = f.Stat(ctx, key) // a folder is no blob, and Remove would take an empty one
	if err == nil {
		err = f.root.Remove(key)
	}
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist), coverslip.KindOf(err) == coverslip.NotFound:
		return nil
	default:
		return folderError("delete blob", f.path(key), err)
	}
}

// List implements Store.
func (f *Folder) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		err := checkPrefix(prefix)
		defer f.took("list", time.Now(), &err)
		if err == nil {
			err = f.walk(ctx, path.Dir(prefix+"x"), prefix, func(i Info) bool { return yield(i, nil) })
		}
		if errors.Is(err, fs.SkipAll) {
			err = nil
		}
		if err != nil {
			yield(Info{}, err)
		}
	}
}

// walk calls visit for the blobs under dir whose key starts with prefix. A folder sorts as its name
// with the slash, which makes the order that of whole keys.
func (f *Folder) walk(ctx context.Context, dir, prefix string, visit func(Info) bool) error {
	entries, err := fs.ReadDir(f.root.FS(), dir)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil && absent(err) {
		return nil
	}
	if err != nil {
		return folderError("list blobs", f.path(dir), err)
	}
	name := func(e fs.DirEntry) string {
		if e.IsDir() {
			return e.Name() + "/"
		}
		return e.Name()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(name(a), name(b)) })
	for _, e := range entries {
		key := path.Join(dir, e.Name())
		if CheckKey(key) != nil || !overlap(path.Join(dir, name(e)), prefix) {
			continue
		}
		if e.IsDir() {
			if err := f.walk(ctx, key, prefix, visit); err != nil {
				return err
			}
			continue
		}
		info, err := e.Info()
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // deleted since the folder was read
			return folderError("list blobs", f.path(key), err)
		}
		if err == nil && info.Mode().IsRegular() && strings.HasPrefix(key, prefix) &&
			!visit(Info{Key: key, Size: info.Size(), Modified: info.ModTime()}) {
			return fs.SkipAll
		}
	}
	return nil
}

func overlap(a, b string) bool { return strings.HasPrefix(a, b) || strings.HasPrefix(b, a) }

// Sweep removes what writers that last wrote before the given time left unfinished.
func (f *Folder) Sweep(ctx context.Context, before time.Time) error {
	const op = "sweep unfinished blobs"
	entries, err := fs.ReadDir(f.root.FS(), unfinished)
	for _, e := range entries {
		info, ierr := e.Info()
		if err = errors.Join(err, ctx.Err()); err != nil {
			break
		}
		if ierr == nil && info.ModTime().Before(before) {
			if err = f.root.Remove(path.Join(unfinished, e.Name())); errors.Is(err, fs.ErrNotExist) {
				err = nil // another process sweeps too
			}
		}
	}
	if err != nil {
		return folderError(op, f.dir, err)
	}
	return nil
}

// inTheWay makes a Conflict of the errors that mean a file where a folder must be, or the reverse.
func inTheWay(err error) error {
	if !isAny(err, syscall.ENOTDIR, syscall.EISDIR, syscall.EEXIST, syscall.ENOTEMPTY) {
		return err
	}
	return &coverslip.Error{Kind: coverslip.Conflict, Op: "make folder", Err: err,
		Hint: "a file stands where a folder must be, or a folder where the file must be: use another name"}
}

func absent(err error) bool { return isAny(err, fs.ErrNotExist, syscall.ENOTDIR) }

func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
}

// folderError names the file and says what kind of thing went wrong with it, unless err does.
func folderError(op, file string, err error) error {
	var ours *coverslip.Error
	if errors.As(err, &ours) {
		return coverslip.At(file, err)
	}
	e := &coverslip.Error{Kind: coverslip.KindOf(err), Op: op, Path: file, Err: err}
	var pathErr *fs.PathError
	var linkErr *os.LinkError
	switch { // they would say the name again
	case errors.As(err, &pathErr):
		e.Err = pathErr.Err
	case errors.As(err, &linkErr):
		e.Err = linkErr.Err
	}
	switch {
	case isAny(err, syscall.ENOSPC, syscall.EDQUOT):
		e.Kind, e.Hint = coverslip.Full, "make room on the disk that holds this folder, then try again"
	case absent(err):
		e.Kind, e.Hint = coverslip.NotFound, "check the name"
	case isAny(err, fs.ErrPermission, syscall.EROFS):
		e.Kind, e.Hint = coverslip.Environment, "let the user that runs Coverslip read and write here"
	}
	return e
}
