package tree

import (
	"context"
	"io"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
)

// Target is a directory that entries are put into. Paths are followed below
// its root only, through no symbolic link. Entries come in tree order; inode
// flags come last, because they forbid changes.
type Target struct{ a *applier }

// OpenTarget opens a directory. What its store cannot keep is refused by name
// or, with lossy, written beside.
func OpenTarget(dir, besideDir string, keeps storage.Fidelity, lossy bool) (*Target, error) {
	root, err := openRoot(dir)
	if err != nil {
		return nil, targetError(err)
	}
	t := &Target{&applier{root: root, keeps: keeps, lossy: lossy, besideDir: besideDir, parent: -1, file: -1, exact: exact(keeps)}}
	if t.a.side, err = openBeside(besideDir, true, false); err != nil {
		unix.Close(root)
		return nil, targetError(err)
	}
	return t, nil
}

func targetError(err error) error { return wrap("write snapshot", "", err) }

// Gone removes what is at a path.
func (t *Target) Gone(path string) error { return t.put(&record{op: opDelete, path: path}) }

// Make makes an entry, or brings one that is there to its size; its metadata
// comes with Meta, content with Data and Hole.
func (t *Target) Make(e *Entry) error {
	switch {
	case e.Kind == File && e.Fresh:
		return t.put(&record{op: opFile, path: e.Path, size: e.Size})
	case e.Kind == File:
		return t.put(&record{op: opChange, path: e.Path, size: e.Size})
	case !e.Fresh || e.Path == "":
		return nil
	case e.Kind == Dir:
		if err := t.put(&record{op: opDelete, path: e.Path}); err != nil {
			return err
		}
		return t.put(&record{op: opDir, path: e.Path})
	case e.Kind == Link:
		return t.put(&record{op: opLink, path: e.Path, target: e.Target})
	case e.Kind == Symlink:
		return t.put(&record{op: opSymlink, path: e.Path, target: e.Target})
	}
	return t.put(&record{op: opNode, path: e.Path, meta: Meta{Mode: e.Meta.Mode & unix.S_IFMT}, size: int64(e.Rdev)})
}

// Data writes content of a file.
func (t *Target) Data(path string, off int64, data []byte) error {
	return t.put(&record{op: opData, path: path, off: off, data: data})
}

// Hole makes a range of a file a hole.
func (t *Target) Hole(path string, off, n int64) error {
	return t.put(&record{op: opHole, path: path, off: off, size: n})
}

// Meta gives an entry its metadata, after its content.
func (t *Target) Meta(e *Entry) error {
	if e.Kind == Link {
		return nil
	}
	return t.put(&record{op: opMeta, path: e.Path, meta: e.Meta})
}

// Flags sets inode flags, after everything else.
func (t *Target) Flags(path string, flags uint32) error {
	return t.put(&record{op: opFlags, path: path, size: int64(flags)})
}

func (t *Target) put(r *record) error { return targetError(t.a.apply(r)) }

// Close writes what lies beside and lets go.
func (t *Target) Close() error {
	err := t.a.flush()
	t.a.close()
	return targetError(err)
}

// Files opens files of a tree that does not change, by their paths.
type Files struct {
	ctx  context.Context
	root int
}

// OpenFiles opens a tree.
func OpenFiles(ctx context.Context, dir string) (*Files, error) {
	root, err := openRoot(dir)
	if err != nil {
		return nil, walkError("", err)
	}
	return &Files{ctx, root}, nil
}

// Close lets go of the tree.
func (f *Files) Close() { unix.Close(f.root) }

// OpenedFile is a file of a tree.
type OpenedFile struct{ fdReader }

// Close lets go of it.
func (f *OpenedFile) Close() error { return unix.Close(f.fd) }

var _ io.ReaderAt = (*OpenedFile)(nil)

// Open opens a regular file.
func (f *Files) Open(path string) (*OpenedFile, error) {
	at, name := splitPath(path)
	dir, err := openDir(f.root, at)
	if err != nil {
		return nil, walkError(path, err)
	}
	defer unix.Close(dir)
	fd, err := openFile(dir, name, unix.O_RDONLY)
	if err != nil {
		return nil, walkError(path, err)
	}
	return &OpenedFile{fdReader{f.ctx, fd, path}}, nil
}
