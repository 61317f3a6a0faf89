package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/btrfs/sendstream"
	"github.com/drover-data/drover/storage/hostfs"
)

// Changes implements storage.Differ by the stream without data that the kernel
// makes between the two: it compares their trees block by block, leaves out
// what they share, and costs what the change costs.
func (b *Backend) Changes(ctx context.Context, volume, base, id string, each func(storage.Change) error) error {
	const op = "compare snapshots"
	object := volume + "@" + id
	if base == "" {
		return &api.Error{Kind: api.Invalid, Op: op, Object: object, Reason: "there is no base to compare with"}
	}
	t := newTracker()
	old, now, err := b.track(ctx, op, volume, base, id, t, func(*tracked) error { return nil })
	if err == nil {
		err = tell(ctx, t, old, now, each)
	}
	return b.fail(op, object, unsure(op, object, err))
}

// errUnsure: what the stream says does not tell all.
var errUnsure = errors.New("the file system's stream does not name all of it")

// unsure makes the errors that only mean that the caller has to compare
// Unsupported; a stream that another kernel makes in another way is one.
func unsure(op, object string, err error) error {
	for _, e := range []error{errUnsure, errTooMuch, sendstream.ErrStream, unix.ENAMETOOLONG} {
		if errors.Is(err, e) {
			return &api.Error{Kind: api.Unsupported, Op: op, Object: object, Reason: "the file system cannot tell exactly what changed", Next: "compare the two", Err: err}
		}
	}
	return err
}

// track lets a tracker follow the stream from base to id. look sees each entry
// that the stream speaks of, at that moment.
func (b *Backend) track(ctx context.Context, op, volume, base, id string, t *tracker, look func(*tracked) error) (old, now storage.Snapshot, err error) {
	p, err := b.pool()
	if err == nil {
		old, err = b.snapshot(p, op, volume, base)
	}
	if err == nil {
		now, err = b.snapshot(p, op, volume, id)
	}
	if err != nil || base == id {
		return old, now, err
	}
	s, err := b.startSend(ctx, op, storage.SendSpec{Volume: volume, ID: id, Base: base, SizeOnly: true})
	if err != nil {
		return old, now, err
	}
	defer s.Close()
	err = eachCommand(s, func(c *sendstream.Command, _ int) error {
		e, err := t.take(c)
		if err == nil && e != nil {
			err = look(e)
		}
		return err
	})
	if err == nil && !t.ended {
		err = wrongStream("it is cut off")
	}
	return old, now, err
}

// inData gives the path within the content.
func inData(path string) (string, bool) {
	if path == hostfs.DataDir {
		return "", true
	}
	return strings.CutPrefix(path, hostfs.DataDir+"/")
}

// tell calls each for what a tracker has gathered.
func tell(ctx context.Context, t *tracker, base, snapshot storage.Snapshot, each func(storage.Change) error) error {
	for _, e := range t.all {
		if !e.noted {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := e.tell(ctx, base, snapshot, each); err != nil {
			return err
		}
	}
	return nil
}

func (e *tracked) tell(ctx context.Context, base, snapshot storage.Snapshot, each func(storage.Change) error) error {
	now, there := e.now()
	path, inside := inData(now)
	inside = inside && there
	was, hadPath := inData(e.was)
	if !e.old || !hadPath {
		if inside {
			return each(storage.Change{Path: path, Whole: true})
		}
		return nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(base.Dir, was), &st); err != nil {
		return fmt.Errorf("look at %q in the base: %w", was, err)
	}
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if !dir && st.Nlink > 1 {
		// The stream uses one of its names; the others changed as well.
		return fmt.Errorf("%w: %q is a file with several names", errUnsure, was)
	}
	if !e.moved() {
		return each(storage.Change{Path: was, Whole: e.whole, Ranges: e.ranges})
	}
	if err := below(ctx, base.Dir, was, dir, each); err != nil || !inside {
		return err
	}
	return below(ctx, snapshot.Dir, path, dir, each)
}

// below names a path and everything under it as a whole: what is in a
// directory that was moved has other paths now, of which the stream does not speak.
func below(ctx context.Context, root, path string, dir bool, each func(storage.Change) error) error {
	if !dir {
		return each(storage.Change{Path: path, Whole: true})
	}
	n := 0
	return filepath.WalkDir(filepath.Join(root, path), func(full string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if n++; n > maxTracked {
			return errTooMuch
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(root, full)
		if err != nil {
			return err
		}
		if rel == "." {
			rel = ""
		}
		return each(storage.Change{Path: rel, Whole: true})
	})
}
