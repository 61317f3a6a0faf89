package zfs

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage/hostfs"
)

// errNoDataset is said of a data set or snapshot that ZFS does not have.
var errNoDataset = errors.New("dataset does not exist")

// errHasClones is said of a snapshot that cannot go yet.
var errHasClones = errors.New("snapshot has dependent clones")

// errIsThere is said of a name that is taken.
var errIsThere = errors.New("dataset already exists")

// command prepares one of the two commands, in the C locale so that what it
// says can be read.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "LANG=C")
	return cmd
}

// run runs a command. One that changes something is not killed once it has
// begun: ZFS would go on with it all the same, beside what is done next.
func run(ctx context.Context, stdin io.Reader, name string, args ...string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	life := ctx
	switch args[0] {
	case "get", "list", "receive":
	default:
		life = context.WithoutCancel(ctx)
	}
	cmd := command(life, name, args...)
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &said
	if err := cmd.Run(); err != nil {
		return "", explain(life, name, args[0], said.String(), err)
	}
	return out.String(), nil
}

func (b *Backend) zfs(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	return run(ctx, stdin, "zfs", args...)
}

func (b *Backend) zpool(ctx context.Context, args ...string) (string, error) {
	return run(ctx, nil, "zpool", args...)
}

// explain gives what a command said a kind.
func explain(ctx context.Context, name, verb, said string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: the %s command is missing: install zfsutils-linux", hostfs.ErrNotThere, name)
	}
	said = strings.TrimSpace(said)
	if len(said) > 1000 {
		said = said[:1000] + " …"
	}
	var kind error
	for _, k := range []struct {
		text string
		err  error
	}{
		{"no such pool", hostfs.ErrNotThere},
		{"onnecting", hostfs.ErrNotThere}, // the daemon of zfs-fuse does not run
		{"onnect to", hostfs.ErrNotThere},
		{"module", hostfs.ErrNotThere},
		{"/dev/zfs", hostfs.ErrNotThere},
		{"I/O is currently suspended", unix.EIO},
		{"dataset does not exist", errNoDataset},
		{"could not find any snapshots to destroy", errNoDataset},
		{"already exists", errIsThere},
		{"has dependent clones", errHasClones},
		{"out of space", unix.ENOSPC},
		{"quota exceeded", unix.EDQUOT},
		{"size is less than current used", unix.EDQUOT},
		{"is busy", unix.EBUSY},
		{"ead-only", unix.EROFS},
		{"I/O error", unix.EIO},
	} {
		if strings.Contains(said, k.text) {
			kind = k.err
			break
		}
	}
	if kind != nil {
		return fmt.Errorf("%s %s: %w: %s", name, verb, kind, said)
	}
	return fmt.Errorf("%s %s: %w: %s", name, verb, err, said)
}

// get reads properties, by name and property; recursive takes in snapshots.
func (b *Backend) get(ctx context.Context, props []string, name string, recursive bool) (map[string]map[string]string, error) {
	flags := "-Hp"
	if recursive {
		flags = "-Hpr"
	}
	out, err := b.zfs(ctx, nil, "get", flags, "-o", "name,property,value", strings.Join(props, ","), name)
	if err != nil {
		return nil, err
	}
	return parseGet(out)
}

func parseGet(out string) (map[string]map[string]string, error) {
	all := map[string]map[string]string{}
	for line := range strings.Lines(out) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3)
		if len(f) != 3 {
			return nil, fmt.Errorf("zfs get said %q", line)
		}
		if all[f[0]] == nil {
			all[f[0]] = map[string]string{}
		}
		all[f[0]][f[1]] = f[2]
	}
	return all, nil
}

// destroy destroys a data set or snapshot. After an unmount a data set stays
// busy until the last request of the kernel has been answered, and nothing
// tells when that was.
func (b *Backend) destroy(ctx context.Context, what ...string) error {
	for wait := 5 * time.Millisecond; ; wait *= 2 {
		_, err := b.zfs(ctx, nil, append([]string{"destroy"}, what...)...)
		if !errors.Is(err, unix.EBUSY) || wait > 200*time.Millisecond {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// number reads a property that is one; -1 where it is none.
func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

func poolOf(dataset string) string {
	pool, _, _ := strings.Cut(dataset, "/")
	return pool
}

var datasetName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.:-]*(/[a-zA-Z0-9][a-zA-Z0-9_.:-]*)*$`)

// validDataset leaves room for what is put behind it: names have 255 bytes.
func validDataset(s string) bool { return len(s) <= 120 && datasetName.MatchString(s) }

func newName() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

// snapName is the name of a snapshot below its tree.
func snapName(volume, id string) string {
	sum := sha256.Sum256([]byte(volume + "/" + id))
	return "s-" + hex.EncodeToString(sum[:16])
}

var (
	ourTree = regexp.MustCompile(`^[0-9a-f]{32}$`)
	ourSnap = regexp.MustCompile(`^([sg]-[0-9a-f]{32}|m-[0-9]+)$`)
	ourView = regexp.MustCompile(`^([0-9a-f]{32})-(s-[0-9a-f]{32})$`)
)

// checkID is hostfs.CheckID where ids are names of files: ".new" is the end of
// one that is being written.
func checkID(what, s string) error {
	if strings.HasSuffix(s, ".new") {
		return hostfs.BadID(what, s)
	}
	return hostfs.CheckID(what, s)
}

// escape makes a branch name a file name. The end keeps a branch "x.new" apart
// from a file that is being written.
func escape(branch string) string { return hostfs.EscapeBranch(branch) + "~" }
