package powerloss

import (
	"fmt"
	"maps"
	"math/rand/v2"
)

// pageSize is what a write reaches the disk in: it is torn between pages, not within.
const pageSize = 4096

type page *[pageSize]byte

// pages are a disk's content; what is missing is zero. A page is never changed
// once it is in a map, so that copies of maps share them.
type pages map[int64]page

// read fills buf from off.
func (p pages) read(buf []byte, off int64) {
	for len(buf) > 0 {
		n, at := off/pageSize, off%pageSize
		part := buf[:min(int64(len(buf)), pageSize-at)]
		if q := p[n]; q != nil {
			copy(part, q[at:])
		} else {
			clear(part)
		}
		buf, off = buf[len(part):], off+int64(len(part))
	}
}

// write changes the content; keep decides about each page touched.
func (p pages) write(data []byte, off int64, keep func() bool) {
	for len(data) > 0 {
		n, at := off/pageSize, off%pageSize
		part := data[:min(int64(len(data)), pageSize-at)]
		if keep() {
			q := new([pageSize]byte)
			if old := p[n]; old != nil {
				*q = *old
			}
			copy(q[at:], part)
			p[n] = q
		}
		data, off = data[len(part):], off+int64(len(part))
	}
}

func always() bool { return true }

// event is a write, or a flush when it has no data.
type event struct {
	off  int64
	data []byte
}

// tape is what was recorded.
type tape struct {
	base pages // durable when the recording began
	log  []event
}

// Mode says what becomes of writes that were never flushed.
type Mode string

const (
	Drop    Mode = "drop"    // they are gone
	Reorder Mode = "reorder" // some pages of some of them are there
	Keep    Mode = "keep"    // all of them are there: a crash of the system, not of the power
)

// at is the disk's content after the power went before event number n.
func (t tape) at(n int, mode Mode, seed uint64) (pages, error) {
	if n < 0 || n > len(t.log) {
		return nil, fmt.Errorf("the tape has %d events, there is no moment %d", len(t.log), n)
	}
	flushed := n
	for flushed > 0 && t.log[flushed-1].data != nil {
		flushed--
	}
	out := maps.Clone(t.base)
	for _, e := range t.log[:flushed] {
		out.write(e.data, e.off, always)
	}
	rng := rand.New(rand.NewPCG(seed, uint64(n)))
	share := rng.Float64() // of the pages that made it
	for _, e := range t.log[flushed:n] {
		switch mode {
		case Drop:
		case Keep:
			out.write(e.data, e.off, always)
		case Reorder:
			out.write(e.data, e.off, func() bool { return rng.Float64() < share })
		default:
			return nil, fmt.Errorf("there is no mode %q", mode)
		}
	}
	return out, nil
}

// flushes lists the moments right after each flush from event number from on.
func (t tape) flushes(from int) []int {
	var out []int
	for i, e := range t.log {
		if i >= from && e.data == nil {
			out = append(out, i+1)
		}
	}
	return out
}
