package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/moby/sys/mountinfo"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
)

// pathText is a path as a terminal shows it: quoted when it is not plain text, so
// that it is seen where it begins and ends, and can be pasted into $'…'.
func pathText(escaped string) string {
	if strings.ContainsAny(escaped, "\\ '\"") || escaped == "" {
		return "$'" + strings.ReplaceAll(escaped, "'", `\'`) + "'"
	}
	return escaped
}

func diffCommand(t *talk) *cobra.Command {
	var stat, names bool
	c := &cobra.Command{
		Use:   "diff VOLUME[@REF] [VOLUME@REF]",
		Short: "Show which files differ between two commits, or a commit and now",
		Long: `With one reference, compare that commit with its branch as it is now; with two,
compare the commits. Each line says what became of a path (A added, D removed,
M modified, m only its metadata, T another type), how many bytes of its content
are new or differ, and its size. What was removed stands for all below it.

Files are told apart by what the file system says of its two snapshots where it
can (btrfs), otherwise by size, times and content.`,
		Example: `  drover diff pg
  drover diff pg@before-upgrade --stat
  drover diff pg@main~2 pg@main -o json`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			volume, from, err := volumeRef(args[0])
			if err != nil {
				return err
			}
			if stat && names {
				return &api.Error{Kind: api.Invalid, Op: "compare commits", Object: args[0], Reason: "--stat and --name-only exclude each other"}
			}
			q := url.Values{"from": {from}, "live": {"true"}}
			if len(args) == 2 {
				if other, _, err := volumeRef(args[1]); err == nil && other != volume && strings.Contains(args[1], "@") {
					return &api.Error{Kind: api.Invalid, Op: "compare commits", Object: args[1], Reason: "it is of another volume", Next: "compare commits of one volume"}
				}
				to, err := commitAt(volume, args[1])
				if err != nil {
					return err
				}
				q.Set("live", "false")
				q.Set("to", to)
			}
			if stat {
				q.Set("limit", "1")
			}
			var d api.Diff
			if err := t.do(c.Context(), http.MethodGet, volumePath(volume, "/diff?"+q.Encode()), nil, &d); err != nil {
				return err
			}
			if stat {
				d.Changes, d.More = nil, false
			}
			return t.print(c.OutOrStdout(), d, func(w *tabwriter.Writer) {
				for _, x := range d.Changes {
					if names {
						fmt.Fprintln(w, pathText(x.Path))
						continue
					}
					fmt.Fprintln(w, strings.TrimRight(strings.Join(diffRow(x), "\t"), "\t "))
				}
				if d.More {
					fmt.Fprintln(w, "… and more")
				}
				if !names {
					fmt.Fprintln(w, totalsText(d.Totals))
				}
			})
		},
	}
	t.flags(c)
	c.Flags().BoolVar(&stat, "stat", false, "only how many paths and bytes differ")
	c.Flags().BoolVar(&names, "name-only", false, "only the paths")
	return c
}

var diffLetters = map[string]string{"added": "A", "removed": "D", "modified": "M", "metadata": "m", "type": "T"}

func diffRow(x api.PathChange) []string {
	path := pathText(x.Path)
	if x.Path == "" {
		path = "(the volume's root)"
	}
	if x.Is == "dir" || x.Is == "" && x.Was == "dir" {
		path += "/"
	}
	bytes, more := "", ""
	switch {
	case x.What == "removed":
		bytes = "-" + sizeText(x.OldSize)
		if x.Entries > 1 {
			more = fmt.Sprintf("%d entries", x.Entries)
		}
	case x.Is == "file":
		bytes = "+" + sizeText(x.Bytes)
		more = "of " + sizeText(x.Size)
	}
	var notes []string
	if x.What == "type" {
		notes = append(notes, x.Was+" > "+x.Is)
	}
	if x.Mode != "" {
		notes = append(notes, "mode "+x.Mode)
	}
	if x.Owner != "" {
		notes = append(notes, "owner "+x.Owner)
	}
	if x.Target != "" {
		notes = append(notes, "-> "+pathText(x.Target))
	}
	return []string{diffLetters[x.What] + " " + path, bytes, more, strings.Join(notes, ", ")}
}

func totalsText(d api.DiffTotals) string {
	text := fmt.Sprintf("%d added, %d removed, %d modified, %d only in metadata", d.Added, d.Removed, d.Modified, d.Metadata)
	if d.Type > 0 {
		text += fmt.Sprintf(", %d of another type", d.Type)
	}
	return text + fmt.Sprintf("; %s new or different, %s gone", sizeText(d.Bytes), sizeText(d.Gone))
}

// fileRef reads VOLUME[@REF]:PATH.
func fileRef(text string) (volume, at, path string, err error) {
	ref, path, found := strings.Cut(text, ":")
	if !found || path == "" {
		return "", "", "", &api.Error{Kind: api.Invalid, Op: "read reference", Object: fmt.Sprintf("%q", text), Reason: "no file is named", Next: "write it as in pg@main~1:base/16384/PG_VERSION"}
	}
	volume, at, err = volumeRef(ref)
	return volume, at, path, err
}

func catCommand(t *talk) *cobra.Command {
	c := &cobra.Command{
		Use:     "cat VOLUME[@REF]:PATH",
		Short:   "Write a file of a commit to standard output",
		Example: "  drover cat pg:postgresql.conf\n  drover cat pg@main~3:pg_hba.conf > old.conf",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			volume, at, path, err := fileRef(args[0])
			if err != nil {
				return err
			}
			return t.cat(c.Context(), c.OutOrStdout(), volume, at, path)
		},
	}
	t.flags(c)
	return c
}

// cat reads a file part by part. The first answer names the commit, and all
// others are of that one.
func (t *talk) cat(ctx context.Context, w io.Writer, volume, at, path string) error {
	for off := int64(0); ; {
		q := url.Values{"at": {at}, "path": {api.EscapePath(path)}, "offset": {fmt.Sprint(off)}, "length": {fmt.Sprint(api.MaxFilePart)}}
		var p api.FilePart
		if err := t.do(ctx, http.MethodGet, volumePath(volume, "/file?"+q.Encode()), nil, &p); err != nil {
			return err
		}
		if _, err := w.Write(p.Data); err != nil {
			return err
		}
		off += int64(len(p.Data))
		if off >= p.Size {
			return nil
		}
		if len(p.Data) == 0 {
			return &api.Error{Kind: api.Damaged, Op: "read file", Object: api.EscapePath(path), Reason: fmt.Sprintf("it ends at byte %d, not at %d", off, p.Size)}
		}
		at = p.Commit
	}
}

func revertFileCommand(t *talk) *cobra.Command {
	var in api.RevertFile
	c := &cobra.Command{
		Use:   "revert-file VOLUME[@BRANCH] PATH",
		Short: "Put one file back as it was in a commit",
		Long: `Replace one file of a branch, in one step, by what it was in a commit: the
branch's newest one, or --from. What was not committed is kept in a stash first,
and drover undo takes the whole back.

While containers use the branch it is refused. With --force it is done all the
same: a program that has the file open goes on with the old one until it opens
it again, and a database's own files must never be replaced under it.`,
		Example: `  drover revert-file pg postgresql.conf
  drover revert-file pg@feature pg_hba.conf --from main~2`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) (err error) {
			volume, branch, err := volumeAt(args[0])
			if err != nil {
				return err
			}
			in.Branch, in.Path = branch, api.EscapePath(args[1])
			if in.From != "" {
				if in.From, err = commitAt(volume, in.From); err != nil {
					return err
				}
			}
			var out api.Reverted
			if err := t.do(c.Context(), http.MethodPost, volumePath(volume, "/revert-file"), in, &out); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), out, func(w *tabwriter.Writer) {
				fmt.Fprintf(w, "%s of %s@%s is as in commit %s (%s)\n", pathText(out.Path), out.Volume, out.Branch, shortID(out.From), sizeText(out.Size))
				if out.Kept != "" {
					fmt.Fprintln(w, "what was not committed is kept as stash "+shortID(out.Kept))
				}
			})
		},
	}
	t.flags(c)
	c.Flags().StringVar(&in.From, "from", "", "the commit to take it from (default: the branch's newest)")
	c.Flags().BoolVar(&in.Force, "force", false, "also while containers use the branch")
	return c
}

func mountCommand(t *talk) *cobra.Command {
	c := &cobra.Command{
		Use:   "mount VOLUME[@REF] DIR",
		Short: "Show a commit's files in a directory, read-only (root)",
		Long: `Mount a commit at DIR, an existing directory of this host: read-only, without
device nodes and set-id programs taking effect. This host has to hold the
commit. Nothing is copied. The commit must not be pruned while it is mounted;
drover umount ends it, and so does a reboot.`,
		Example: "  drover mount pg@before-upgrade /mnt\n  drover umount /mnt",
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			const op = "mount commit"
			volume, at, err := volumeRef(args[0])
			if err != nil {
				return err
			}
			if t.host != "" {
				return &api.Error{Kind: api.Invalid, Op: op, Object: args[0], Reason: "a commit is mounted on the host that holds it", Next: "run this there, without --host"}
			}
			var status api.ClusterStatus
			if err := t.do(c.Context(), http.MethodGet, "/v1/status", nil, &status); err != nil {
				return err
			}
			var p api.Place
			if err := t.do(c.Context(), http.MethodGet, volumePath(volume, "/place?at="+url.QueryEscape(at)), nil, &p); err != nil {
				return err
			}
			if p.Node != status.Node {
				return &api.Error{Kind: api.Unavailable, Op: op, Object: args[0], Reason: "this host does not hold the commit; " + p.Node + " does", Next: "run this on " + p.Node}
			}
			if err := mountReadOnly(p.Dir, args[1]); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), p, func(w *tabwriter.Writer) {
				fmt.Fprintf(w, "commit %s of %s is at %s, read-only\n", shortID(p.Commit), p.Volume, args[1])
			})
		},
	}
	t.flags(c)
	return c
}

// mountReadOnly shows a directory at another place. It is never there writable,
// not for a moment: the copy of the mount gets its flags before it gets a place.
func mountReadOnly(from, to string) error {
	const op = "mount commit"
	fail := func(err error) error {
		e := &api.Error{Kind: api.Internal, Op: op, Object: to, Err: err}
		switch {
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
			e.Kind, e.Next = api.Denied, "only root mounts: use sudo"
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			e.Kind, e.Next = api.Invalid, "give an existing directory of this host"
		case errors.Is(err, unix.ENOSYS):
			e.Kind, e.Reason = api.Unsupported, "the kernel is older than 5.12"
		}
		return e
	}
	st, err := os.Stat(to)
	if err != nil {
		return fail(err)
	}
	if !st.IsDir() {
		return fail(unix.ENOTDIR)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", from, err))
	}
	defer unix.Close(fd)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return fail(err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
		return fail(err)
	}
	return nil
}

func umountCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "umount DIR",
		Short: "End what drover mount began (root)",
		Args:  cobra.ExactArgs(1),
		RunE:  func(_ *cobra.Command, args []string) error { return unmountReadOnly(args[0]) },
	}
}

// unmountReadOnly undoes mountReadOnly, and nothing else: what is mounted there
// has to look like that.
func unmountReadOnly(dir string) error {
	const op = "unmount commit"
	real, err := filepath.EvalSymlinks(dir)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return &api.Error{Kind: api.NotFound, Op: op, Object: dir, Err: err, Next: "give the directory that was given to drover mount"}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(real))
	if err != nil {
		return &api.Error{Kind: api.Internal, Op: op, Object: dir, Err: err}
	}
	ours := false
	for _, m := range mounts {
		has := map[string]bool{}
		for _, o := range strings.Split(m.Options, ",") {
			has[o] = true
		}
		ours = has["ro"] && has["nosuid"] && has["nodev"] && m.Mountpoint == real && (strings.Contains(m.Root, "/snapshots/") || m.FSType == "zfs" || strings.HasPrefix(m.FSType, "fuse"))
	}
	if !ours {
		return &api.Error{Kind: api.NotFound, Op: op, Object: dir, Reason: "no commit is mounted there"}
	}
	switch err := unix.Unmount(real, unix.UMOUNT_NOFOLLOW); {
	case errors.Is(err, unix.EBUSY):
		return &api.Error{Kind: api.InUse, Op: op, Object: dir, Err: err, Next: "leave the directory, and stop what has files open there"}
	case errors.Is(err, unix.EPERM):
		return &api.Error{Kind: api.Denied, Op: op, Object: dir, Err: err, Next: "only root unmounts: use sudo"}
	case err != nil:
		return &api.Error{Kind: api.Internal, Op: op, Object: dir, Err: err}
	}
	return nil
}
