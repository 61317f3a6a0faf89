package zfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// part builds a zfs stream of one object with the given content.
func part(from, to uint64, data []byte, flags uint32) []byte {
	var out []byte
	var sum fletcher4
	put := func(rec [recordSize]byte, payload []byte) {
		sum.add(rec[:])
		sum.add(payload)
		out = append(append(out, rec[:]...), payload...)
	}
	var r [recordSize]byte
	le := binary.LittleEndian
	le.PutUint64(r[8:], zfsMagic)
	r[16], r[32] = 1, 2 // one stream, of a file system
	le.PutUint64(r[24:], 1_700_000_000)
	le.PutUint32(r[36:], flags)
	le.PutUint64(r[40:], to)
	le.PutUint64(r[48:], from)
	copy(r[56:], "tank/x@y")
	put(r, nil)
	r = [recordSize]byte{}
	le.PutUint32(r[:], recordWrite)
	le.PutUint64(r[32:], uint64(len(data)))
	put(r, data)
	r = [recordSize]byte{}
	le.PutUint32(r[:], recordEnd)
	sum.put(r[8:])
	le.PutUint64(r[40:], to)
	return append(out, r[:]...)
}

func whole(h header, parts ...[]byte) []byte {
	return append(h.bytes(), slices.Concat(parts...)...)
}

// altered is a part with one byte of its beginning changed and right checksums.
func altered(at int, c byte) []byte {
	p := part(0, 7, nil, 0)
	p[at] = c
	var sum fletcher4
	sum.add(p[:len(p)-recordSize])
	sum.put(p[len(p)-recordSize+8:])
	return p
}

func TestScan(t *testing.T) {
	a, b := part(0, 7, make([]byte, 4096), 0), part(7, 9, []byte("changed!"), 0)
	for _, c := range []struct {
		name string
		data []byte
		ok   bool
	}{
		{"full", whole(header{0, 7, 1}, a), true},
		{"changes", whole(header{7, 9, 1}, b), true},
		{"two steps", whole(header{0, 9, 2}, a, b), true},
		{"full in place of changes", whole(header{5, 7, 1}, a), true},
		{"cut between steps", whole(header{0, 9, 2}, a), false},
		{"more behind the end", whole(header{0, 7, 1}, a, b), false},
		{"steps that do not follow", whole(header{0, 9, 2}, a, part(8, 9, nil, 0)), false},
		{"another base", whole(header{6, 9, 1}, b), false},
		{"another snapshot", whole(header{0, 8, 1}, a), false},
		{"no steps", whole(header{0, 7, 0}), false},
		{"too many steps", whole(header{0, 7, 1 << 60}, a), false},
		{"nothing", nil, false},
		{"as it was", whole(header{0, 7, 1}, altered(16, 1)), true},
		{"a package of streams", whole(header{0, 7, 1}, altered(16, 2)), false},
		{"a block device's", whole(header{0, 7, 1}, altered(32, 3)), false},
	} {
		_, steps, err := scan(bytes.NewReader(c.data))
		if (err == nil) != c.ok || err != nil && !errors.Is(err, errStream) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.ok && len(steps) == 0 {
			t.Errorf("%s: no steps", c.name)
		}
	}
}

// TestDamage: no bit of a stream can change, and no byte be missing, unseen.
func TestDamage(t *testing.T) {
	data := whole(header{0, 9, 2}, part(0, 7, make([]byte, 64), 0), part(7, 9, []byte("changed!"), 0))
	for i := range data {
		for bit := range 8 {
			broken := slices.Clone(data)
			broken[i] ^= 1 << bit
			h, steps, err := scan(bytes.NewReader(broken))
			// Another base is the business of who compares it with what is there.
			if err == nil && !(h.base != 0 && steps[0].from == 0) {
				t.Fatalf("bit %d of byte %d was flipped and nobody saw it", bit, i)
			}
		}
		if _, _, err := scan(bytes.NewReader(data[:i])); !errors.Is(err, errStream) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

// TestAsClone: the rewritten stream is right in itself and differs in nothing
// but the flag and the checksum, however it is read.
func TestAsClone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		payload := rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "payload")
		payload = append(payload, make([]byte, (8-len(payload)%8)%8)...)
		flags := rapid.Uint32Range(0, 255).Draw(t, "flags")
		data := whole(header{7, 9, 1}, part(7, 9, payload, flags))
		_, steps, err := scan(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		r := steps[0].reader(bytes.NewReader(data), true)
		var got []byte
		for {
			p := make([]byte, rapid.IntRange(1, 400).Draw(t, "n"))
			n, err := r.Read(p)
			got = append(got, p[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if want := part(7, 9, payload, flags|flagClone); !bytes.Equal(got, want) {
			t.Fatal("the rewritten stream is not the one with the flag")
		}
		plain, err := io.ReadAll(steps[0].reader(bytes.NewReader(data), false))
		if err != nil || !bytes.Equal(plain, data[headerSize:]) {
			t.Fatal("the plain stream is not what was there")
		}
	})
}

func FuzzScan(f *testing.F) {
	f.Add(whole(header{0, 7, 1}, part(0, 7, make([]byte, 128), 0)))
	f.Add(whole(header{0, 9, 2}, part(0, 7, nil, 0), part(7, 9, []byte("changed!"), 1)))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, steps, err := scan(bytes.NewReader(data))
		if err != nil {
			if !errors.Is(err, errStream) {
				t.Fatal(err)
			}
			return
		}
		end := int64(headerSize)
		for _, s := range steps {
			if s.at != end {
				t.Fatal("the parts do not follow each other")
			}
			end += s.size
		}
		if end != int64(len(data)) || steps[len(steps)-1].to != h.to {
			t.Fatal("what was taken is not the whole")
		}
	})
}

func TestParseGet(t *testing.T) {
	got, err := parseGet("tank/a b\tused\t12\ntank/a b\torigin\t-\ntank/c@d\tused\t1\n")
	if err != nil || got["tank/a b"]["used"] != "12" || got["tank/a b"]["origin"] != "-" || number(got["tank/c@d"]["used"]) != 1 || number("-") != -1 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseGet("nonsense\n"); err == nil {
		t.Error("nonsense was taken")
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"tank": true, "tank/drover": true, "tank/a.b-c_d:e/f": true, "": false, "/tank": false, "tank/": false, "-tank": false, "tank/-x": false, "tank@s": false, "tank//x": false, "tank/x y": false} {
		if validDataset(name) != ok {
			t.Errorf("validDataset(%q) is %v", name, !ok)
		}
	}
	if snapName("a", "b") == snapName("a", "c") || !ourSnap.MatchString(snapName("a", "b")) || !ourTree.MatchString(newName()) {
		t.Error("names are not what sweep knows as ours")
	}
}

func TestHasChange(t *testing.T) {
	changed := part(3, 7, []byte("changed!"), 0)
	same := append(bytes.Clone(changed[:recordSize]), changed[len(changed)-recordSize:]...)
	for _, x := range []struct {
		stream []byte
		want   bool
	}{
		{same, false},
		{changed, true},
	} {
		if got, err := hasChange(bytes.NewReader(x.stream)); err != nil || got != x.want {
			t.Errorf("%v, %v, want %v", got, err, x.want)
		}
		for _, n := range []int{0, 100, recordSize} {
			if got, err := hasChange(bytes.NewReader(x.stream[:n])); !errors.Is(err, errStream) {
				t.Errorf("cut after %d bytes: %v, %v", n, got, err)
			}
		}
	}
}

func FuzzHasChange(f *testing.F) {
	f.Add(part(3, 7, nil, 0))
	f.Add(part(3, 7, []byte("changed!"), 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := hasChange(bytes.NewReader(data)); err != nil && !errors.Is(err, errStream) {
			t.Fatal(err)
		}
	})
}
