package btrfs

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/drover-data/drover/storage/btrfs/sendstream"
)

func text(a sendstream.Attr, s string) sendstream.Field {
	return sendstream.Field{Attr: a, Value: []byte(s)}
}

func number(a sendstream.Attr, n uint64) sendstream.Field {
	return sendstream.Field{Attr: a, Value: binary.LittleEndian.AppendUint64(nil, n)}
}

// step encodes a command and lets the tracker take it.
func (t *tracker) step(op sendstream.Op, fields ...sendstream.Field) error {
	var c sendstream.Command
	if err := c.Parse(sendstream.AppendCommand(nil, 1, op, fields...), 1); err != nil {
		return err
	}
	_, err := t.take(&c)
	return err
}

// found describes what a tracker has noted, one line an entry.
func (t *tracker) found() []string {
	var out []string
	for _, e := range t.all {
		if !e.noted {
			continue
		}
		now, there := e.now()
		line := "-"
		if there {
			line = now
		}
		if e.old && e.was != now {
			line = e.was + " > " + line
		}
		if e.whole {
			line += " whole"
		}
		if len(e.ranges) > 0 {
			line += fmt.Sprint(" ", e.ranges)
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

func TestTrackerFollowsNames(t *testing.T) {
	path := func(s string) sendstream.Field { return text(sendstream.Path, s) }
	to := func(s string) sendstream.Field { return text(sendstream.PathTo, s) }
	type cmd struct {
		op     sendstream.Op
		fields []sendstream.Field
	}
	do := func(op sendstream.Op, f ...sendstream.Field) cmd { return cmd{op, f} }
	for _, x := range []struct {
		name string
		cmds []cmd
		want []string
	}{
		{"a new file comes as an orphan", []cmd{
			do(sendstream.Mkfile, path("o300-7-0")), do(sendstream.Rename, path("o300-7-0"), to("data/new")),
			do(sendstream.UpdateExtent, path("data/new"), number(sendstream.FileOffset, 0), number(sendstream.Size, 10)),
		}, []string{"data/new whole"}},
		{"ranges of one file are joined where they meet", []cmd{
			do(sendstream.UpdateExtent, path("data/f"), number(sendstream.FileOffset, 4096), number(sendstream.Size, 4096)),
			do(sendstream.UpdateExtent, path("data/f"), number(sendstream.FileOffset, 8192), number(sendstream.Size, 4096)),
			do(sendstream.UpdateExtent, path("data/f"), number(sendstream.FileOffset, 65536), number(sendstream.Size, 1)),
		}, []string{"data/f [{4096 8192} {65536 1}]"}},
		{"a file that is moved away and back is where it was", []cmd{
			do(sendstream.Rename, path("data/a"), to("o257-7-0")),
			do(sendstream.UpdateExtent, path("o257-7-0"), number(sendstream.FileOffset, 0), number(sendstream.Size, 1)),
			do(sendstream.Rename, path("o257-7-0"), to("data/a")),
		}, []string{"data/a [{0 1}]"}},
		{"two directories change places", []cmd{
			do(sendstream.Rename, path("data/a"), to("o257-7-0")),
			do(sendstream.Rename, path("data/b"), to("data/a")),
			do(sendstream.UpdateExtent, path("data/a/x"), number(sendstream.FileOffset, 0), number(sendstream.Size, 1)),
			do(sendstream.Rename, path("o257-7-0"), to("data/b")),
			do(sendstream.Utimes, path("data/b/x")),
		}, []string{"data/a > data/b", "data/a/x > data/b/x", "data/b > data/a", "data/b/x > data/a/x [{0 1}]"}},
		{"what lay in a directory that goes is removed under another name", []cmd{
			do(sendstream.Rename, path("data/d"), to("o260-3-0")),
			do(sendstream.Mkdir, path("o261-9-0")), do(sendstream.Rename, path("o261-9-0"), to("data/d")),
			do(sendstream.Unlink, path("o260-3-0/f")), do(sendstream.Rmdir, path("o260-3-0")),
		}, []string{"data/d > - whole", "data/d whole", "data/d/f > - whole"}},
		{"a second name changes the first", []cmd{
			do(sendstream.Link, path("data/n"), text(sendstream.PathLink, "data/f")),
		}, []string{"data/f whole", "data/n whole"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			tr := newTracker()
			for _, c := range x.cmds {
				if err := tr.step(c.op, c.fields...); err != nil {
					t.Fatal(err)
				}
			}
			if got := tr.found(); !slices.Equal(got, x.want) {
				t.Errorf("got  %q\nwant %q", got, x.want)
			}
		})
	}
}

func TestTrackerRefusesNonsense(t *testing.T) {
	path := func(s string) sendstream.Field { return text(sendstream.Path, s) }
	to := func(s string) sendstream.Field { return text(sendstream.PathTo, s) }
	tr := newTracker()
	if err := tr.step(sendstream.Mkdir, path("new")); err != nil {
		t.Fatal(err)
	}
	if err := tr.step(sendstream.Rmdir, path("old")); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"below what was removed":       tr.step(sendstream.Utimes, path("old/x")),
		"below what is new":            tr.step(sendstream.Utimes, path("new/x")),
		"the root removed":             tr.step(sendstream.Rmdir, path("")),
		"the root renamed":             tr.step(sendstream.Rename, path(""), to("x")),
		"into itself":                  tr.step(sendstream.Rename, path("data/d"), to("data/d/e/f")),
		"an empty name":                tr.step(sendstream.Utimes, path("data//x")),
		"a directory as a new name":    tr.step(sendstream.Mkfile, path("data/")),
		"an unknown command":           tr.step(99, path("data")),
		"a range that wraps around":    tr.step(sendstream.UpdateExtent, path("data/f"), number(sendstream.FileOffset, 1<<63), number(sendstream.Size, 1)),
		"a range without a length":     tr.step(sendstream.UpdateExtent, path("data/f"), number(sendstream.FileOffset, 1)),
		"a rename without a new place": tr.step(sendstream.Rename, path("data/f")),
	} {
		if err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}

// FuzzTracker lets a tracker follow random commands on few names: it must end
// with every entry in at most one place.
func FuzzTracker(f *testing.F) {
	f.Add([]byte{3, 0, 9, 1, 11, 2, 22, 3})
	f.Add([]byte{9, 18, 9, 33, 9, 5, 4, 7, 9, 118})
	names := []string{"a", "b", "o1-1-0", "a/b", "b/a", "a/b/c", "a/a/a", "b/b"}
	f.Fuzz(func(t *testing.T, data []byte) {
		tr := newTracker()
		for ; len(data) >= 2; data = data[2:] {
			from, other := names[data[1]%8], names[data[1]/8%8]
			err := tr.step(sendstream.Op(data[0]%27), text(sendstream.Path, from), text(sendstream.PathTo, other),
				text(sendstream.PathLink, other), number(sendstream.FileOffset, uint64(data[0])), number(sendstream.Size, uint64(data[1])),
				number(sendstream.CloneLen, 1), text(sendstream.Data, "x"))
			if err != nil {
				return
			}
		}
		seen := map[string]*tracked{}
		for _, e := range tr.all {
			if now, there := e.now(); there {
				if seen[now] != nil {
					t.Fatalf("two entries at %q", now)
				}
				seen[now] = e
				if got, err := tr.find(now); err != nil || got != e {
					t.Fatalf("%q is found as %v, %v", now, got, err)
				}
			}
		}
	})
}
