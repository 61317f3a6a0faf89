package tree

import (
	"cmp"
	"context"
	"slices"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// Hints say where two snapshots can differ, as the file system tells it
// (storage.Differ). A nil *Hints knows nothing.
type Hints struct {
	paths map[string]*hint
}

type hint struct {
	whole  bool
	below  bool // something below it can differ
	ranges []storage.Range
}

// NewHints is empty: nothing differs.
func NewHints() *Hints { return &Hints{paths: map[string]*hint{"": {below: true}}} }

// HintsOf asks a pool where two of its snapshots can differ. It is nil where
// the pool cannot tell: then they are compared.
func HintsOf(ctx context.Context, b storage.Backend, volume, base, id string) (*Hints, error) {
	d, ok := storage.As[storage.Differ](b)
	if !ok {
		return nil, nil
	}
	h := NewHints()
	switch err := d.Changes(ctx, volume, base, id, h.Add); {
	case api.Is(err, api.Unsupported):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return h, nil
}

// Add notes a change.
func (h *Hints) Add(c storage.Change) error {
	at := h.at(c.Path)
	at.whole = at.whole || c.Whole
	for _, r := range c.Ranges {
		if r.Length > 0 {
			at.ranges = append(at.ranges, r)
		}
	}
	for dir := c.Path; dir != ""; {
		dir, _ = splitPath(dir)
		up := h.at(dir)
		if up.below {
			break
		}
		up.below = true
	}
	return nil
}

func (h *Hints) at(path string) *hint {
	x := h.paths[path]
	if x == nil {
		x = &hint{}
		h.paths[path] = x
	}
	return x
}

// skips reports whether a path that both trees have cannot differ, nor
// anything below it.
func (h *Hints) skips(path string) bool {
	if h == nil {
		return false
	}
	_, known := h.paths[path]
	return !known
}

// ranges gives where the content of a file can differ, if that is known: of
// one and the same inode, in order, within its size, joined where they meet.
func (h *Hints) ranges(path string, ea, eb *entry) ([]changedRange, bool) {
	if h == nil || ea.ino != eb.ino || ea.beside != nil || eb.beside != nil {
		return nil, false
	}
	x := h.paths[path]
	if x == nil || x.whole {
		return nil, false
	}
	slices.SortFunc(x.ranges, func(a, b storage.Range) int { return cmp.Compare(a.Offset, b.Offset) })
	var out []changedRange
	for _, r := range x.ranges {
		from, to := r.Offset, min(r.Offset+r.Length, eb.size)
		if n := len(out); n > 0 {
			last := &out[n-1]
			if from <= last.off+last.n {
				last.n = max(last.n, to-last.off)
				continue
			}
		}
		if from < to {
			out = append(out, changedRange{off: from, n: to - from})
		}
	}
	return out, true
}

// holes splits what changed into data and holes.
func holes(fd int, in []changedRange, size int64) ([]changedRange, error) {
	var f changedFile
	for _, r := range in {
		for off := r.off; off < r.off+r.n; {
			x, err := nextData(fd, off, size)
			if err != nil {
				return nil, err
			}
			if from := min(x.from, r.off+r.n); from > off {
				f.add(changedRange{off, from - off, true})
				off = from
			}
			if to := min(x.to, r.off+r.n); to > off {
				f.add(changedRange{off, to - off, false})
				off = to
			}
		}
	}
	return f.ranges, nil
}
