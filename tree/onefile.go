package tree

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// checkPath refuses paths that could lead out of a tree.
func checkPath(op, path string) error {
	if !ValidPath(path) {
		return &api.Error{Kind: api.Invalid, Op: op, Object: fmt.Sprintf("%.200q", path), Reason: "not a path inside a volume", Next: "give it relative to the volume's root, without . and .. and with single slashes"}
	}
	return nil
}

// pathError says what the kernel meant by refusing a path.
func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	e := &api.Error{Op: op, Object: fmt.Sprintf("%.200q", path), Err: err}
	switch {
	case errors.Is(err, unix.ENOENT):
		e.Kind, e.Reason, e.Err = api.NotFound, "there is no such file", nil
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		e.Kind, e.Reason, e.Next = api.Invalid, "the path leads through a symbolic link, which is not followed", "give the path that it points to"
	case errors.Is(err, unix.ENOTDIR):
		e.Kind, e.Reason = api.NotFound, "what is above it is no directory"
	default:
		return wrap(op, fmt.Sprintf("%.200q", path), err)
	}
	return e
}

// Look gives an entry of a tree. No symbolic link is followed.
func Look(s storage.Snapshot, path string) (*Entry, error) {
	const op = "read file"
	if err := checkPath(op, path); err != nil {
		return nil, err
	}
	a, err := openView(s.Dir, s.Beside)
	if err != nil {
		return nil, pathError(op, path, err)
	}
	defer a.close()
	dir, _ := splitPath(path)
	above, err := openDir(a.root, dir)
	if err != nil {
		return nil, pathError(op, path, err)
	}
	unix.Close(above)
	e, err := (&describer{a: a}).was(path)
	if err == nil && e == nil {
		err = unix.ENOENT
	}
	return e, pathError(op, path, err)
}

// Read reads a part of a regular file: what is there, at most len(p).
func Read(ctx context.Context, s storage.Snapshot, path string, p []byte, off int64) (int, error) {
	const op = "read file"
	files, err := OpenFiles(ctx, s.Dir)
	if err != nil {
		return 0, pathError(op, path, err)
	}
	defer files.Close()
	f, err := files.Open(path)
	if err != nil {
		return 0, pathError(op, path, err)
	}
	defer f.Close()
	n, err := readFull(f.fd, p, off)
	return n, pathError(op, path, err)
}

// Restore puts one file, symbolic link, device or FIFO of a snapshot into the
// directory to, with its metadata: under a name of its own first, durably, and
// then in place of what is there, in one step. Directories above it that are
// missing are made as the snapshot has them. tmp is that first name.
func Restore(ctx context.Context, s storage.Snapshot, path, to, tmp string) (*Entry, error) {
	const op = "write file back"
	e, err := Look(s, path)
	if err != nil {
		return nil, err
	}
	if e.Kind == Dir {
		return nil, &api.Error{Kind: api.Unsupported, Op: op, Object: fmt.Sprintf("%.200q", path), Reason: "it is a directory", Next: "give the files in it one by one, or copy from drover mount"}
	}
	v, err := openView(s.Dir, s.Beside)
	if err != nil {
		return nil, pathError(op, path, err)
	}
	defer v.close()
	root, err := openRoot(to)
	if err != nil {
		return nil, pathError(op, path, err)
	}
	a := &applier{root: root, keeps: storage.Full(), exact: true, parent: -1, file: -1}
	defer a.close()
	dir, name := splitPath(path)
	if err := restoreDirs(v, a, dir); err != nil {
		return nil, pathError(op, path, err)
	}
	at := join(dir, tmp)
	err = restoreAs(ctx, v, a, path, at)
	if err == nil {
		err = replace(a, dir, tmp, name)
	}
	if err != nil {
		_ = a.apply(&record{op: opDelete, path: at})
		return nil, pathError(op, path, err)
	}
	return e, nil
}

// restoreDirs makes the directories of a path that are not there.
func restoreDirs(v *view, a *applier, dir string) error {
	if dir == "" {
		return nil
	}
	fd, err := openDir(a.root, dir)
	if err == nil {
		return unix.Close(fd)
	}
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	up, _ := splitPath(dir)
	if err := restoreDirs(v, a, up); err != nil {
		return err
	}
	f := v.folder(dir)
	defer f.close()
	e, err := lookSelf(f)
	if err != nil {
		return err
	}
	m, err := f.selfMeta(e)
	if err != nil {
		return err
	}
	if err := a.apply(&record{op: opDir, path: dir}); err != nil {
		return err
	}
	return a.apply(&record{op: opMeta, path: dir, meta: m})
}

// restoreAs makes the entry at path of the view under another path.
func restoreAs(ctx context.Context, v *view, a *applier, path, as string) error {
	dir, name := splitPath(path)
	f := v.folder(dir)
	defer f.close()
	e, err := f.look(name)
	if err != nil {
		return err
	}
	if e == nil {
		return unix.ENOENT
	}
	m, err := f.meta(name, e)
	if err != nil {
		return err
	}
	switch kindOf(e) {
	case File:
		err = restoreContent(ctx, f, a, name, as, e)
	case Symlink:
		var target string
		if target, err = f.target(name, e); err == nil {
			err = a.apply(&record{op: opSymlink, path: as, target: target})
		}
	default:
		err = a.apply(&record{op: opNode, path: as, meta: Meta{Mode: e.kind()}, size: int64(e.rdev)})
	}
	if err != nil {
		return err
	}
	return a.apply(&record{op: opMeta, path: as, meta: m})
}

func restoreContent(ctx context.Context, f *folder, a *applier, name, as string, e *entry) error {
	fd, err := f.file(name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := a.apply(&record{op: opFile, path: as, size: e.size}); err != nil {
		return err
	}
	sink := &copySink{ctx: ctx, to: a, reflink: true}
	if err := sink.copyFile(fd, as, e.size); err != nil { // another file system, or one that shares nothing
		sink.reflink = false
		return sink.copyFile(fd, as, e.size)
	}
	return nil
}

// replace gives what was made its name, durably.
func replace(a *applier, dir, tmp, name string) error {
	a.leave()
	fd, err := openDir(a.root, dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if there, err := statAt(fd, name); err == nil && there.isDir() {
		return &api.Error{Kind: api.Conflict, Op: "write file back", Object: fmt.Sprintf("%.200q", join(dir, name)), Reason: "there is a directory of that name now", Next: "move it away first"}
	}
	if file, err := openFile(fd, tmp, unix.O_RDONLY); err == nil {
		err = unix.Fsync(file)
		unix.Close(file)
		if err != nil {
			return err
		}
	}
	if err := unix.Renameat(fd, tmp, fd, name); err != nil {
		return err
	}
	return unix.Fsync(fd)
}
