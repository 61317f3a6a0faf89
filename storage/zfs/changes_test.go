package zfs

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/drover-data/drover/storage"
)

// record makes one of a kind with numbers at places of it.
func record(kind uint32, at map[int]uint64, payload []byte) []byte {
	b := make([]byte, recordSize)
	binary.LittleEndian.PutUint32(b, kind)
	for i, v := range at {
		binary.LittleEndian.PutUint64(b[i:], v)
	}
	return append(b, payload...)
}

// saBonus are the attributes of an object as new file systems lay them out.
func saBonus(mode, born, flags, parent, links uint64) []byte {
	b := make([]byte, 8+160)
	binary.LittleEndian.PutUint32(b, saMagic)
	binary.LittleEndian.PutUint16(b[4:], 1<<10|2)
	for i, v := range map[int]uint64{0: mode, 16: born, 40: parent, 48: flags, 120: links} {
		binary.LittleEndian.PutUint64(b[8+i:], v)
	}
	return b
}

func TestChangedReads(t *testing.T) {
	bonus := saBonus(0o100644, 7, 0, 4, 1)
	stream := bytes.Join([][]byte{
		record(recordBegin, nil, nil),
		record(recordObject, map[int]uint64{8: 9, 16: typeFile | typeSA<<32, 24: 131072 | uint64(len(bonus))<<32}, bonus),
		record(recordWrite, map[int]uint64{8: 9, 24: 131072, 32: 8}, make([]byte, 8)),
		record(recordWrite, map[int]uint64{8: 9, 24: 131080, 32: 8}, make([]byte, 8)),
		record(recordFree, map[int]uint64{8: 9, 16: 1 << 20, 24: ^uint64(0)}, nil),
		record(recordWrite, map[int]uint64{8: 12, 24: 0, 32: 8}, make([]byte, 8)),
		record(recordFreeObjects, map[int]uint64{8: 10, 16: 5}, nil),
		record(recordEnd, nil, nil),
	}, nil)
	c := &changed{objects: map[uint64]*object{}}
	if err := c.read(bytes.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	if len(c.objects) != 1 {
		t.Fatalf("%d objects", len(c.objects))
	}
	o := c.objects[9]
	if len(o.ranges) != 2 || o.ranges[0] != (storage.Range{Offset: 131072, Length: 16}) || o.ranges[1].Offset != 1<<20 || o.ranges[1].Length <= 0 || o.ranges[1].Offset+o.ranges[1].Length < 0 {
		t.Errorf("ranges %+v", o.ranges)
	}
	if z := o.node; !z.known || z.born != 7 || z.parent != 4 || z.links != 1 || z.extended {
		t.Errorf("%+v", z)
	}
	for i := range stream[:len(stream)-recordSize] {
		if i%97 == 0 {
			if err := (&changed{objects: map[uint64]*object{}}).read(bytes.NewReader(stream[:i])); err == nil {
				t.Fatalf("cut at %d it is whole", i)
			}
		}
	}
}

func FuzzChangedReads(f *testing.F) {
	f.Add(record(recordBegin, nil, nil))
	f.Add(append(record(recordBegin, nil, nil), record(recordEnd, nil, nil)...))
	f.Add(append(record(recordBegin, nil, nil), record(recordObject, map[int]uint64{8: 1, 28: 168}, saBonus(0o100644, 1, 1, 1, 1))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &changed{objects: map[uint64]*object{}}
		if err := c.read(bytes.NewReader(b)); err == nil && len(b) < 2*recordSize {
			t.Error("a stream without an end is whole")
		}
		for _, o := range c.objects {
			for _, r := range o.ranges {
				if r.Offset < 0 || r.Length < 0 || r.Offset+r.Length < 0 {
					t.Errorf("range %+v", r)
				}
			}
		}
	})
}
