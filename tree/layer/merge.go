package layer

import (
	"fmt"
	"io"
	"slices"

	"github.com/drover-data/drover/tree"
	"github.com/drover-data/drover/tree/digest"
)

// Merge lays layers one over the other, the newest first, and gives what they
// say together, in tree order. whole says that the oldest holds a whole tree:
// then the result does, and says nothing of what is gone.
func Merge(whole bool, newestFirst ...Source) Source {
	m := &merger{whole: whole}
	for _, s := range newestFirst {
		m.layers = append(m.layers, &layer{from: s})
	}
	return m
}

type merger struct {
	layers []*layer // newest first
	whole  bool
	begun  bool
}

// layer is a source with the entry it stands at.
type layer struct {
	from Source
	at   *Entry // nil at the end
	dead string // nothing below this path counts, because of a newer layer
	any  bool   // dead is set
}

// advance goes to the next entry that counts.
func (l *layer) advance() error {
	for {
		e, err := l.from.Next()
		if err == io.EOF {
			l.at = nil
			return nil
		}
		if err != nil {
			return err
		}
		if !l.any || !tree.Below(e.Path, l.dead) {
			l.at = e
			return nil
		}
	}
}

func (m *merger) Next() (*Entry, error) {
	if !m.begun {
		m.begun = true
		for _, l := range m.layers {
			if err := l.advance(); err != nil {
				return nil, err
			}
		}
	}
	for {
		e, err := m.step()
		if err != nil || e == nil {
			return nil, err
		}
		switch {
		case !m.whole:
		case e.Gone:
			continue
		case !e.Fresh:
			return nil, damaged(fmt.Sprintf("the layers say how %.200q changed and none says what it was", e.Path))
		}
		return e, nil
	}
}

// step gives what all layers say of the first path that any stands at.
func (m *merger) step() (*Entry, error) {
	first := ""
	found := false
	for _, l := range m.layers {
		if l.at != nil && (!found || tree.Order(l.at.Path, first) < 0) {
			first, found = l.at.Path, true
		}
	}
	if !found {
		return nil, io.EOF
	}
	var sum *Entry
	closed := false
	for _, l := range m.layers {
		if closed {
			l.dead, l.any = first, true
		}
		if l.at == nil || (l.at.Path != first && !(closed && tree.Below(l.at.Path, first))) {
			continue
		}
		if l.at.Path == first && !closed {
			if sum == nil {
				sum = l.at
			} else if err := lay(sum, l.at); err != nil {
				return nil, err
			}
			closed = sum.Gone || sum.Fresh
		}
		if err := l.advance(); err != nil {
			return nil, err
		}
	}
	return sum, nil
}

// lay puts what an older layer says of a path under what newer ones say.
func lay(newer, older *Entry) error {
	if older.Gone || older.Kind != newer.Kind || newer.Kind == tree.Link {
		return damaged(fmt.Sprintf("the layers say how %.200q changed, and before that it was something else", newer.Path))
	}
	newer.Fresh = older.Fresh
	if newer.Kind != tree.File {
		return nil
	}
	newer.Extents = under(newer.Extents, older.Extents, newer.Cut)
	newer.Sums = sumsUnder(newer.Sums, older.Sums, newer.Cut)
	newer.Cut = min(newer.Cut, older.Cut)
	if newer.Fresh {
		newer.Cut = 0
		newer.Extents = slices.DeleteFunc(newer.Extents, func(x Extent) bool { return x.Hole })
	}
	return nil
}

// under gives upper, and lower where upper has nothing and below cut. Both
// are in order without overlaps, and so is the result.
func under(upper, lower []Extent, cut int64) []Extent {
	if len(lower) == 0 {
		return upper
	}
	out := make([]Extent, 0, len(upper)+len(lower))
	i := 0
	for _, x := range lower {
		off, end := x.Off, min(x.Off+x.Len, cut)
		for off < end {
			for i < len(upper) && upper[i].Off+upper[i].Len <= off {
				out = append(out, upper[i])
				i++
			}
			to := end
			if i < len(upper) {
				if upper[i].Off <= off {
					off = upper[i].Off + upper[i].Len
					continue
				}
				to = min(to, upper[i].Off)
			}
			out = append(out, x.part(off, to-off))
			off = to
		}
	}
	return append(out, upper[i:]...)
}

// part is the piece of an extent from off on.
func (x Extent) part(off, n int64) Extent {
	if !x.Hole {
		x.Skip += int(off - x.Off)
	}
	x.Off, x.Len = off, n
	return x
}

func sumsUnder(upper, lower []RangeSum, cut int64) []RangeSum {
	if len(lower) == 0 {
		return upper
	}
	out := make([]RangeSum, 0, len(upper)+len(lower))
	i := 0
	for _, s := range lower {
		for i < len(upper) && upper[i].N < s.N {
			out = append(out, upper[i])
			i++
		}
		if (i == len(upper) || upper[i].N != s.N) && s.N*digest.RangeSize < cut {
			out = append(out, s)
		}
	}
	return append(out, upper[i:]...)
}

// Covers reports whether laying the layers newer over any tree that older
// made of a common tree gives the same as laying them over that common tree:
// whether newer says something of everything that older touched. Both are
// merged layers, not whole.
func Covers(newer, older Source) (bool, error) {
	n := &layer{from: newer}
	if err := n.advance(); err != nil {
		return false, err
	}
	covering, any := "", false // a path of newer that is fresh or gone
	for {
		o, err := older.Next()
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		for n.at != nil && tree.Order(n.at.Path, o.Path) <= 0 {
			if n.at.Gone || n.at.Fresh {
				covering, any = n.at.Path, true
			}
			if n.at.Path == o.Path {
				break
			}
			if err := n.advance(); err != nil {
				return false, err
			}
		}
		if any && (covering == o.Path || tree.Below(o.Path, covering)) {
			continue
		}
		if n.at == nil || n.at.Path != o.Path || o.Gone || o.Fresh || !covers(n.at, o) {
			return false, nil
		}
	}
}

// covers does it for one path that neither made anew.
func covers(n, o *Entry) bool {
	if n.Kind != tree.File {
		return true
	}
	if o.Cut < n.Cut {
		return false // the older one cut off what the newer one counts on
	}
	i := 0
	for _, x := range o.Extents {
		for off, end := x.Off, min(x.Off+x.Len, n.Cut); off < end; {
			for i < len(n.Extents) && n.Extents[i].Off+n.Extents[i].Len <= off {
				i++
			}
			if i == len(n.Extents) || n.Extents[i].Off > off {
				return false
			}
			off = n.Extents[i].Off + n.Extents[i].Len
		}
	}
	return true
}
